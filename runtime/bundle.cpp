#include "bundle.h"

#include "../kernels/view.h"
#include "ed25519.h"
#include "sha256.h"

namespace edgec {
namespace {

constexpr uint64_t kHeaderBytes = 128, kRecordBytes = 64, kTensorBytes = 64;
constexpr uint32_t kMaxSections = 16, kMaxStrings = 65536, kMaxTensors = 65536, kMaxStringBytes = 1024;
constexpr uint64_t kMaxManifest = uint64_t(1) << 20;
constexpr uint32_t kChunkLog2 = 20;
constexpr uint32_t kOptional = 1;  // section flag: a reader that does not know the kind skips it
constexpr uint64_t kSignatureBytes = 104;
constexpr uint32_t kEd25519 = 1;
constexpr char kSignedDomain[] = "edgec bundle signature 1";  // its NUL is signed too

const char *const kSectionName[SECTION_KINDS] = {
    "", "STRINGS", "TENSORS", "PLAN", "WEIGHTS", "TOKENIZER", "GOLDEN", "MANIFEST", "HASHES", "SIGNATURE"};

bool all_zero(const uint8_t *p, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if (p[i]) return false;
    return true;
}

struct SectionRecord {
    uint32_t kind, flags;
    uint64_t offset, bytes;
    uint8_t digest[32];
};

struct Header {
    uint32_t n_sections;
    uint8_t versions[16];  // bytes 8..23: format, minimum reader, features
    uint8_t table_digest[32];
};

// Header fields are judged on our copy of the bytes, so that a file changed meanwhile cannot differ between two reads.
edgec_status read_header(const uint8_t *file, uint64_t bytes, Bundle *bundle, Header *header, Message &message) {
    if (bytes < kHeaderBytes)
        return fail(message, EDGEC_ERROR_FORMAT, "header: found a file of %llu bytes, wanted at least %llu", ull(bytes),
                    ull(kHeaderBytes));
    uint8_t raw[kHeaderBytes];
    memcpy(raw, file, sizeof raw);
    Reader r(raw, sizeof raw);
    if (memcmp(r.take(8), "EDGECBDL", 8) != 0)
        return fail(message, EDGEC_ERROR_FORMAT, "header: magic: this file is not an edgec bundle");
    const uint32_t major = r.u16(), minor = r.u16(), need_major = r.u16(), need_minor = r.u16();
    const uint64_t features = r.u64(), total = r.u64();
    header->n_sections = r.u32();
    const uint32_t header_bytes = r.u32();
    memcpy(header->table_digest, r.take(32), 32);
    memcpy(header->versions, raw + 8, sizeof header->versions);
    const uint8_t *reserved = r.take(24);
    const uint8_t *digest = r.take(32);
    if (major != EDGEC_FORMAT_MAJOR)
        return fail(message, EDGEC_ERROR_VERSION, "header: format: found %u.%u, wanted %d.x", major, minor,
                    EDGEC_FORMAT_MAJOR);
    if (total != bytes)
        return fail(message, EDGEC_ERROR_FORMAT,
                    "header: total length: found a file of %llu bytes, wanted %llu; it was cut or extended", ull(bytes),
                    ull(total));
    uint8_t actual[32];
    sha256(raw, 96, actual);
    if (memcmp(actual, digest, 32) != 0)
        return fail(message, EDGEC_ERROR_HASH, "header: its SHA-256 does not match its bytes");
    if (need_major > EDGEC_FORMAT_MAJOR || (need_major == EDGEC_FORMAT_MAJOR && need_minor > EDGEC_FORMAT_MINOR))
        return fail(message, EDGEC_ERROR_VERSION, "header: minimum reader: found %u.%u, wanted at most %d.%d",
                    need_major, need_minor, EDGEC_FORMAT_MAJOR, EDGEC_FORMAT_MINOR);
    if (features != 0)
        return fail(message, EDGEC_ERROR_VERSION, "header: required features: found unknown bits %llx, wanted none",
                    ull(features));
    if (header_bytes != kHeaderBytes)
        return fail(message, EDGEC_ERROR_FORMAT, "header: header length: found %u, wanted %llu", header_bytes,
                    ull(kHeaderBytes));
    if (header->n_sections < 1 || header->n_sections > kMaxSections)
        return fail(message, EDGEC_ERROR_FORMAT, "header: section count: found %u, wanted 1..%u", header->n_sections,
                    kMaxSections);
    if (!all_zero(reserved, 24)) return fail(message, EDGEC_ERROR_FORMAT, "header: reserved bytes: wanted zero");
    memcpy(bundle->identity, digest, 32);
    return EDGEC_OK;
}

edgec_status read_table(const uint8_t *file, uint64_t bytes, const Header &header, SectionRecord *records,
                        Message &message) {
    const uint64_t table_bytes = kRecordBytes * header.n_sections;
    if (table_bytes > bytes - kHeaderBytes)
        return fail(message, EDGEC_ERROR_FORMAT, "section table: found %u sections in a file of %llu bytes",
                    header.n_sections, ull(bytes));
    uint8_t raw[kRecordBytes * kMaxSections], digest[32];
    memcpy(raw, file + kHeaderBytes, size_t(table_bytes));
    sha256(raw, table_bytes, digest);
    if (memcmp(digest, header.table_digest, 32) != 0)
        return fail(message, EDGEC_ERROR_HASH, "section table: its SHA-256 does not match its bytes");
    Reader r(raw, table_bytes);
    uint64_t end = kHeaderBytes + table_bytes;
    for (uint32_t i = 0; i < header.n_sections; i++) {
        SectionRecord &s = records[i];
        s.kind = r.u32(), s.flags = r.u32(), s.offset = r.u64(), s.bytes = r.u64();
        memcpy(s.digest, r.take(32), 32);
        const uint64_t reserved = r.u64();
        for (uint32_t j = 0; j < i; j++)
            if (records[j].kind == s.kind)
                return fail(message, EDGEC_ERROR_FORMAT, "section table: kind %u: found twice", s.kind);
        if (s.flags & ~kOptional || reserved != 0)
            return fail(message, EDGEC_ERROR_FORMAT, "section table: kind %u: flags or reserved bytes: wanted zero",
                        s.kind);
        if ((s.kind == 0 || s.kind >= SECTION_KINDS) && !(s.flags & kOptional))
            return fail(message, EDGEC_ERROR_VERSION,
                        "section table: found kind %u, which this reader does not know and may not skip", s.kind);
        uint64_t wanted;
        if (!align_u64(end, &wanted) || s.offset != wanted)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "section table: kind %u: offset: found %llu, wanted %llu (sorted, 64-byte aligned, no gaps)",
                        s.kind, ull(s.offset), ull(wanted));
        if (s.bytes == 0 || s.offset > bytes || s.bytes > bytes - s.offset)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "section table: kind %u: length: found %llu, wanted 1..%llu (inside the file)", s.kind,
                        ull(s.bytes), ull(s.offset > bytes ? 0 : bytes - s.offset));
        if (!all_zero(file + end, s.offset - end))
            return fail(message, EDGEC_ERROR_FORMAT, "section table: kind %u: padding before it: wanted zero bytes",
                        s.kind);
        end = s.offset + s.bytes;
    }
    if (end != bytes)
        return fail(message, EDGEC_ERROR_FORMAT, "section table: found the last section to end at %llu, wanted %llu",
                    ull(end), ull(bytes));
    return EDGEC_OK;
}

// Copies every known section but the weights, and hashes the copies: what is checked is what is used.
edgec_status copy_sections(const uint8_t *file, const SectionRecord *records, uint32_t n, const Allocator &allocator,
                           Bundle *bundle, Message &message) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++) {
        const SectionRecord &s = records[i];
        if (s.kind == SECTION_MANIFEST && s.bytes > kMaxManifest)
            return fail(message, EDGEC_ERROR_FORMAT, "MANIFEST: length: found %llu, wanted at most %llu", ull(s.bytes),
                        ull(kMaxManifest));
        if (s.kind == SECTION_WEIGHTS || s.kind >= SECTION_KINDS || s.kind == 0) continue;
        uint64_t aligned;  // cannot overflow: the sections lie disjoint inside the file
        if (!align_u64(s.bytes, &aligned) || !add_u64(total, aligned, &total))
            return fail(message, EDGEC_ERROR_FORMAT, "section table: the lengths overflow");
    }
    if (!bundle->copy.allocate(allocator, total))
        return fail(message, EDGEC_ERROR_MEMORY, "open: %llu bytes for the sections cannot be allocated", ull(total));
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        const SectionRecord &s = records[i];
        const bool known = s.kind != 0 && s.kind < SECTION_KINDS;
        if (s.kind == SECTION_WEIGHTS) {
            if (!all_zero(s.digest, 32))
                return fail(message, EDGEC_ERROR_FORMAT, "section table: WEIGHTS: hash: wanted zero (see HASHES)");
            bundle->section[s.kind] = {file + s.offset, s.bytes};
            continue;
        }
        const uint8_t *data = file + s.offset;
        if (known) {
            memcpy(bundle->copy.data() + at, data, size_t(s.bytes));
            data = bundle->copy.data() + at;
            bundle->section[s.kind] = {data, s.bytes};
            uint64_t aligned = 0;
            align_u64(s.bytes, &aligned);
            at += aligned;
        }
        uint8_t digest[32];
        sha256(data, s.bytes, digest);
        if (memcmp(digest, s.digest, 32) != 0)
            return fail(message, EDGEC_ERROR_HASH, "section %s: its SHA-256 does not match its bytes",
                        known ? kSectionName[s.kind] : "(unknown)");
    }
    const SectionKind required[] = {SECTION_STRINGS, SECTION_TENSORS,  SECTION_PLAN,
                                    SECTION_WEIGHTS, SECTION_MANIFEST, SECTION_HASHES};
    for (SectionKind kind : required)
        if (!bundle->section[kind].data)
            return fail(message, EDGEC_ERROR_FORMAT, "section table: %s: found none, wanted one", kSectionName[kind]);
    return EDGEC_OK;
}

// The message that a signature signs (docs/format.md): all that the file holds but the signature itself, weights by way
// of HASHES, places by way of the rule that there are no gaps. Returns its length.
uint64_t signed_message(const Header &header, const SectionRecord *records, uint8_t *to) {
    const uint8_t *begin = to;
    const auto put = [&to](const void *from, size_t n) {
        memcpy(to, from, n);
        to += n;
    };
    uint32_t covered = 0;
    for (uint32_t i = 0; i < header.n_sections; i++) covered += records[i].kind != SECTION_SIGNATURE;
    put(kSignedDomain, sizeof kSignedDomain);
    put(header.versions, sizeof header.versions);
    put(&covered, 4);
    for (uint32_t i = 0; i < header.n_sections; i++) {
        const SectionRecord &s = records[i];
        if (s.kind == SECTION_SIGNATURE) continue;
        put(&s.kind, 4), put(&s.flags, 4), put(&s.bytes, 8), put(s.digest, 32);
    }
    return uint64_t(to - begin);
}

void key_text(const uint8_t key[32], char text[17]) {
    for (int i = 0; i < 8; i++) snprintf(text + 2 * i, 3, "%02x", key[i]);
}

// Judges the digests of the table, which copy_sections has compared with the bytes that are used.
edgec_status check_signature(const Header &header, const SectionRecord *records, const Section &s,
                             const uint8_t *public_key, Message &message) {
    if (public_key && !kVerifiesSignatures)
        return fail(message, EDGEC_ERROR_UNSUPPORTED,
                    "open: public_key: this program was packaged without signatures; wanted `package --signatures`");
    if (!s.data)
        return public_key ? fail(message, EDGEC_ERROR_SIGNATURE, "SIGNATURE: found none, wanted one by the given key")
                          : EDGEC_OK;
    const SectionRecord &last = records[header.n_sections - 1];
    Reader r(s.data, s.bytes);
    const uint32_t algorithm = r.u32(), zero = r.u32();
    if (last.kind != SECTION_SIGNATURE || last.flags != 0 || s.bytes != kSignatureBytes || zero != 0)
        return fail(message, EDGEC_ERROR_FORMAT,
                    "SIGNATURE: found %llu bytes, wanted %llu, zero padding and flags, and the last section",
                    ull(s.bytes), ull(kSignatureBytes));
    if (algorithm != kEd25519)
        return fail(message, EDGEC_ERROR_VERSION, "SIGNATURE: algorithm: found %u, wanted %u (Ed25519)", algorithm,
                    kEd25519);
    if (!public_key) return EDGEC_OK;
    const uint8_t *key = r.take(32), *signature = r.take(64);
    char found[17], wanted[17];
    key_text(key, found), key_text(public_key, wanted);
    if (memcmp(key, public_key, 32) != 0)
        return fail(message, EDGEC_ERROR_SIGNATURE, "SIGNATURE: found one by the key %s..., wanted one by %s...", found,
                    wanted);
    uint8_t text[sizeof kSignedDomain + sizeof header.versions + 4 + 48 * kMaxSections];
    if (!ed25519_verify(public_key, signature, text, signed_message(header, records, text)))
        return fail(message, EDGEC_ERROR_SIGNATURE,
                    "SIGNATURE: the key %s... has not signed this; the file was changed after signing", wanted);
    return EDGEC_OK;
}

edgec_status check_strings(Bundle *bundle, Message &message) {
    const Section s = bundle->section[SECTION_STRINGS];
    Reader r(s.data, s.bytes);
    const uint32_t count = r.u32();
    if (r.bad() || count > kMaxStrings || r.left() / 4 < uint64_t(count) + 1)
        return fail(message, EDGEC_ERROR_FORMAT, "STRINGS: count: found %u in %llu bytes, wanted at most %u that fit",
                    count, ull(s.bytes), kMaxStrings);
    const uint64_t blob = 4 + 4 * (uint64_t(count) + 1), blob_bytes = s.bytes - blob;
    uint32_t start = r.u32();
    if (start != 0) return fail(message, EDGEC_ERROR_FORMAT, "STRINGS: start[0]: found %u, wanted 0", start);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t end = r.u32();
        if (end > blob_bytes || end < start || end - start < 2 || end - start > kMaxStringBytes + 1)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "STRINGS: string %u: found the range %u..%u, wanted 1..%u bytes and a NUL inside %llu bytes", i,
                        start, end, kMaxStringBytes, ull(blob_bytes));
        if (s.data[blob + end - 1] != 0 || !valid_utf8(s.data + blob + start, end - start - 1, false))
            return fail(message, EDGEC_ERROR_FORMAT,
                        "STRINGS: string %u: wanted UTF-8 without control characters, then a NUL", i);
        start = end;
    }
    if (start != blob_bytes)
        return fail(message, EDGEC_ERROR_FORMAT, "STRINGS: found %llu bytes of text, wanted %u", ull(blob_bytes),
                    start);
    bundle->n_strings = count;
    return EDGEC_OK;
}

edgec_status check_tensors(Bundle *bundle, const Allocator &allocator, Message &message) {
    const Section s = bundle->section[SECTION_TENSORS];
    Reader r(s.data, s.bytes);
    const uint32_t count = r.u32(), zero = r.u32();
    if (r.bad() || count > kMaxTensors || zero != 0 || r.left() != uint64_t(count) * kTensorBytes)
        return fail(message, EDGEC_ERROR_FORMAT,
                    "TENSORS: count: found %u in %llu bytes, wanted at most %u records of 64 bytes", count,
                    ull(s.bytes), kMaxTensors);
    if (!bundle->tensors.allocate(allocator, count))
        return fail(message, EDGEC_ERROR_MEMORY, "open: the tensor table of %u records cannot be allocated", count);
    const uint64_t weight_bytes = bundle->section[SECTION_WEIGHTS].bytes;
    uint64_t end = 0;
    for (uint32_t i = 0; i < count; i++) {
        Tensor &t = bundle->tensors[i];
        t.name = r.u32(), t.dtype = r.u8(), t.format = r.u8(), t.rank = r.u8();
        const uint8_t pad = r.u8();
        t.offset = r.u64(), t.bytes = r.u64();
        for (uint32_t &d : t.dim) d = r.u32();
        const uint64_t reserved = r.u64();
        if (t.name >= bundle->n_strings)
            return fail(message, EDGEC_ERROR_FORMAT, "TENSORS: tensor %u: name: found string %u of %u", i, t.name,
                        bundle->n_strings);
        const char *name = bundle->string(t.name);
        if (pad || reserved || dtype_size(t.dtype) == 0 || t.format > PANEL16 || t.rank < 1 || t.rank > kMaxRank)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "TENSORS: %.100s: found dtype %u, format %u, rank %u, wanted known ones and zero padding", name,
                        t.dtype, t.format, t.rank);
        if (t.format == PANEL16 && dtype_size(t.dtype) <= 4 && t.dtype <= BF16 && !reads_panels(t.dtype))
            return fail(message, EDGEC_ERROR_UNSUPPORTED,
                        "TENSORS: %.100s: found weights of dtype %u, which this program was packaged without; package "
                        "this bundle", name, t.dtype);
        View view;
        view.dtype = t.dtype, view.format = t.format, view.rank = t.rank;
        for (uint32_t k = 0; k < kMaxRank; k++) {
            if ((t.dim[k] == 0) != (k >= t.rank))
                return fail(message, EDGEC_ERROR_FORMAT, "TENSORS: %.100s: dim %u: found %u, wanted %s", name, k,
                            t.dim[k], k < t.rank ? "at least 1" : "0");
            view.dim[k] = t.dim[k];
        }
        const int64_t stored = bytes_of(view);
        if (stored < 0 || uint64_t(stored) != t.bytes)
            return fail(message, EDGEC_ERROR_FORMAT, "TENSORS: %.100s: bytes: found %llu, wanted %lld", name,
                        ull(t.bytes), ll(stored));
        uint64_t wanted;
        if (!align_u64(end, &wanted) || t.offset != wanted)
            return fail(message, EDGEC_ERROR_FORMAT,
                        "TENSORS: %.100s: offset: found %llu, wanted %llu (sorted, 64-byte aligned, no gaps)", name,
                        ull(t.offset), ull(wanted));
        if (t.offset > weight_bytes || t.bytes > weight_bytes - t.offset)
            return fail(message, EDGEC_ERROR_FORMAT, "TENSORS: %.100s: found bytes %llu + %llu, wanted inside %llu",
                        name,
                        ull(t.offset), ull(t.bytes), ull(weight_bytes));
        end = t.offset + t.bytes;
    }
    const uint64_t wanted = count ? end : 64;
    if (weight_bytes != wanted)
        return fail(message, EDGEC_ERROR_FORMAT, "WEIGHTS: length: found %llu, wanted %llu", ull(weight_bytes),
                    ull(wanted));
    return EDGEC_OK;
}

edgec_status check_hashes(const Bundle &bundle, Message &message) {
    const Section s = bundle.section[SECTION_HASHES];
    Reader r(s.data, s.bytes);
    const uint32_t log2 = r.u32(), count = r.u32();
    const uint64_t chunk = uint64_t(1) << kChunkLog2;
    const uint64_t weight_bytes = bundle.section[SECTION_WEIGHTS].bytes;
    const uint64_t wanted = weight_bytes / chunk + (weight_bytes % chunk != 0);
    if (r.bad() || log2 != kChunkLog2 || count != wanted || r.left() != uint64_t(count) * 32)
        return fail(message, EDGEC_ERROR_FORMAT, "HASHES: found %u chunks of 2^%u bytes, wanted %llu of 2^%u", count,
                    log2, ull(wanted), kChunkLog2);
    return EDGEC_OK;
}

}  // namespace

bool valid_utf8(const uint8_t *p, uint64_t n, bool allow_control) {
    for (uint64_t i = 0; i < n;) {
        const uint32_t lead = p[i];
        const uint32_t extra = lead < 0x80 ? 0 : lead >> 5 == 6 ? 1 : lead >> 4 == 14 ? 2 : lead >> 3 == 30 ? 3 : 4;
        if (extra == 4 || extra >= n - i) return false;
        uint32_t code = extra == 0 ? lead : lead & (0x3Fu >> extra);
        for (uint32_t k = 1; k <= extra; k++) {
            if (p[i + k] >> 6 != 2) return false;
            code = code << 6 | (p[i + k] & 0x3F);
        }
        const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
        if (code < least[extra] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return false;
        if (!allow_control && (code < 0x20 || (code >= 0x7F && code <= 0x9F))) return false;
        i += extra + 1;
    }
    return true;
}

const char *Bundle::string(uint32_t index) const {
    const uint8_t *base = section[SECTION_STRINGS].data;
    uint32_t start;
    memcpy(&start, base + 4 + 4 * uint64_t(index), 4);
    return reinterpret_cast<const char *>(base + 4 + 4 * (uint64_t(n_strings) + 1) + start);
}

edgec_status bundle_open(const uint8_t *file, uint64_t bytes, const uint8_t *public_key, const Allocator &allocator,
                         Bundle *bundle, Message &message) {
    bundle->file = file;
    bundle->file_bytes = bytes;
    Header header = {};
    SectionRecord records[kMaxSections];
    edgec_status status = read_header(file, bytes, bundle, &header, message);
    if (status == EDGEC_OK) status = read_table(file, bytes, header, records, message);
    if (status == EDGEC_OK) status = copy_sections(file, records, header.n_sections, allocator, bundle, message);
    if (status == EDGEC_OK)
        status = check_signature(header, records, bundle->section[SECTION_SIGNATURE], public_key, message);
    if (status == EDGEC_OK) status = check_strings(bundle, message);
    if (status == EDGEC_OK) status = check_tensors(bundle, allocator, message);
    if (status == EDGEC_OK) status = check_hashes(*bundle, message);
    if (status != EDGEC_OK) return status;
    const Section manifest = bundle->section[SECTION_MANIFEST];
    if (!valid_utf8(manifest.data, manifest.bytes, true))
        return fail(message, EDGEC_ERROR_FORMAT, "MANIFEST: wanted UTF-8 text");
    return EDGEC_OK;
}

edgec_status bundle_verify_weights(const Bundle &bundle, Message &message) {
    const Section weights = bundle.section[SECTION_WEIGHTS];
    const uint8_t *digests = bundle.section[SECTION_HASHES].data + 8;
    const uint64_t chunk = uint64_t(1) << kChunkLog2;
    for (uint64_t at = 0, i = 0; at < weights.bytes; at += chunk, i++) {
        const uint64_t left = weights.bytes - at;
        uint8_t digest[32];
        sha256(weights.data + at, left < chunk ? left : chunk, digest);
        if (memcmp(digest, digests + 32 * i, 32) != 0)
            return fail(message, EDGEC_ERROR_HASH,
                        "WEIGHTS: bytes %llu..%llu: their SHA-256 does not match; the file was damaged or changed",
                        ull(at), ull(at + (left < chunk ? left : chunk)));
    }
    return EDGEC_OK;
}

}  // namespace edgec
