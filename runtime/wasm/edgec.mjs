// A compiled language model in a browser or under node, through the C interface of edgec.wasm. Copy this file.
//
//     const edgec = await Edgec.load(bytesOfEdgecWasm);
//     const model = edgec.open(bytesOfModelEdgec);        // a copy lies in the module's memory
//     const session = model.session({ context: 512 });
//     for (let tokens = model.tokenize('It was'); ; tokens = [next])
//         next = argmax(session.step(tokens));             // logits of the last token
//     session.run({ image: { data, shape: [1, 3, 224, 224] } })   // models of tensors
//
// Calls are synchronous and take one thread: in a browser, use them in a worker. Every failure is an Error with the
// runtime's words. Structures are those of edgec.h as 32-bit code lays them out.

const OK = 0, BAD_FILE = 8;  // edgec_status, and what WASI calls a file that is not open

/** The system calls that a module without files needs: a clock. `memory` gives the module's memory. */
function system(module, memory) {
    const view = () => new DataView(memory().buffer);
    const known = {
        clock_time_get(clock, precision, at) {
            view().setBigUint64(at, BigInt(Math.round(performance.now() * 1e6)), true);
            return OK;
        },
        environ_sizes_get(count, bytes) {
            view().setUint32(count, 0, true);
            view().setUint32(bytes, 0, true);
            return OK;
        },
        environ_get: () => OK,
        proc_exit(code) { throw new Error(`edgec.wasm ended with status ${code}`); },
    };
    const imports = {};
    for (const { module: from, name } of WebAssembly.Module.imports(module))
        (imports[from] ??= {})[name] = known[name] ?? (() => BAD_FILE);
    return imports;
}

/** The bytes of an ArrayBuffer or of a view of one, a typed array of any kind or a Buffer; not copied. */
function bytesOf(data, what) {
    if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const kind = Object.prototype.toString.call(data).slice(8, -1);  // of another window too
    if (kind === 'ArrayBuffer' || kind === 'SharedArrayBuffer') return new Uint8Array(data);
    throw new Error(`edgec: ${what}: wanted an ArrayBuffer or a typed array, found ${kind}`);
}

export class Edgec {
    /** bytes: edgec.wasm. wasi: an object of node:wasi, for edgec_open on files; without it there are none. */
    static async load(bytes, wasi) {
        const module = await WebAssembly.compile(bytes);
        let instance;
        const imports = wasi ? { wasi_snapshot_preview1: wasi.wasiImport } : system(module, () => instance.exports.memory);
        instance = await WebAssembly.instantiate(module, imports);
        if (wasi) wasi.initialize(instance);
        else instance.exports._initialize();
        return new Edgec(instance.exports);
    }

    constructor(exports) {
        this.c = exports;
        this.words = this.allocate(512);  // the message of the newest failure
    }

    // The memory moves when it grows: views are made anew for every use.
    get view() { return new DataView(this.c.memory.buffer); }
    bytes(at, length) { return new Uint8Array(this.c.memory.buffer, at, length); }
    text(at) {
        const all = new Uint8Array(this.c.memory.buffer, at >>> 0);
        return new TextDecoder().decode(all.subarray(0, all.indexOf(0)));
    }

    /** The address of `length` bytes, 64-byte aligned as edgec_open_buffer wants it; an Error when memory is out. */
    allocate(length) {
        // The most that the module's allocator gives; a number of more than 32 bits would be taken modulo 2^32.
        const at = length < 2 ** 31 ? this.c.aligned_alloc(64, Math.ceil((length || 1) / 64) * 64) >>> 0 : 0;
        if (!at) throw new Error(`edgec: ${length} bytes do not fit the module's memory`);
        return at;
    }

    /** Calls use(address) on a copy of the ArrayBuffer or view, or on so many zero bytes, and frees it again. */
    lend(data, use) {
        const bytes = typeof data === 'number' ? null : bytesOf(data, 'data'), length = bytes ? bytes.length : data;
        const at = this.allocate(length);
        try {
            if (bytes) this.bytes(at, length).set(bytes);
            else this.bytes(at, length).fill(0);
            return use(at);
        } finally {
            this.c.free(at);
        }
    }

    check(status, words) {
        if (status !== OK) throw new Error(`${this.text(this.c.edgec_status_text(status))}: ${this.text(words)}`);
    }

    /**
     * A Model from the bytes of model.edgec, which are copied. Both are an ArrayBuffer or a view. options.publicKey: the
     * 32 bytes of a key; only a bundle that it has signed. null, or no such option: it does not matter who signed.
     */
    open(bundle, options = {}) {
        // An undefined key is more likely a slip than the wish for none.
        const pinned = 'publicKey' in options && options.publicKey !== null;
        const publicKey = pinned ? bytesOf(options.publicKey, 'publicKey') : null;
        if (pinned && publicKey.length !== 32)
            throw new Error(`edgec: publicKey: wanted the 32 bytes of a key, found ${publicKey.length}`);
        const whole = bytesOf(bundle, 'bundle'), at = this.allocate(whole.length);
        this.bytes(at, whole.length).set(whole);
        try {
            return this.lend(publicKey ?? 32, (key) => this.lend(24, (given) => this.lend(4, (handle) => {
                this.view.setUint32(given, 24, true);
                this.view.setUint32(given + 20, pinned ? key : 0, true);
                this.check(this.c.edgec_open_buffer(at, BigInt(whole.length), given, handle, this.words, 512),
                           this.words);
                return new Model(this, this.view.getUint32(handle, true), at);
            })));
        } catch (error) {
            this.c.free(at);
            throw error;
        }
    }
}

// edgec_tensor: where its fields are, and the typed array of each edgec_dtype (16-bit floats as their bits).
const TENSOR = 168, RANK = 8, SHAPE = 16, DATA = 144, BYTES = 152, NAME = 160;
const ARRAYS = [null, Float32Array, Uint16Array, Uint16Array, Int8Array, Uint8Array, Int32Array, BigInt64Array, Uint8Array];

export class Model {
    constructor(edgec, handle, memory) {
        Object.assign(this, { edgec, handle, memory });
        this.info = edgec.lend(64, (at) => {
            edgec.view.setUint32(at, 64, true);
            edgec.check(edgec.c.edgec_model_get_info(handle, at), edgec.words);
            const u32 = (k) => edgec.view.getUint32(at + k, true);
            return { context: u32(8), vocab: u32(12), eos: edgec.view.getInt32(at + 36, true), n_inputs: u32(20),
                     n_outputs: u32(24), isa: edgec.text(u32(56)), warning: edgec.text(u32(60)) };
        });
    }

    /** The declared inputs of a generic model: name, dtype (of edgec.h), shape (open sizes: their maximum). */
    get inputs() { return this.ports(this.edgec.c.edgec_model_input, this.info.n_inputs); }
    get outputs() { return this.ports(this.edgec.c.edgec_model_output, this.info.n_outputs); }
    ports(ask, count) {
        const { edgec } = this;
        return Array.from({ length: count }, (_, index) => edgec.lend(TENSOR, (at) => {
            edgec.view.setUint32(at, TENSOR, true);
            edgec.check(ask(this.handle, index, at), edgec.words);
            return { name: edgec.text(edgec.view.getUint32(at + NAME, true)), dtype: edgec.view.getUint32(at + 4, true),
                     shape: shapeOf(edgec, at) };
        }));
    }

    /** options.context: most tokens, 0 for the model's own maximum. options.memory: most bytes, 0 for no limit. */
    session({ context = 0, memory = 0 } = {}) {
        const { edgec } = this;
        return edgec.lend(32, (at) => edgec.lend(4, (handle) => {
            edgec.view.setUint32(at, 32, true);
            edgec.view.setBigUint64(at + 8, BigInt(memory), true);
            edgec.view.setUint32(at + 16, context, true);
            edgec.check(edgec.c.edgec_session_create(this.handle, at, handle, edgec.words, 512), edgec.words);
            return new Session(this, edgec.view.getUint32(handle, true));
        }));
    }

    /** The ids of a text. addSpecial: with the beginning token that the tokenizer's own rules add. */
    tokenize(text, addSpecial = true) {
        const { edgec } = this, utf8 = new TextEncoder().encode(text);
        return edgec.lend(utf8, (at) => this.twice(4, (to, count) => edgec.c.edgec_tokenize(
            this.handle, at, BigInt(utf8.length), addSpecial ? 1 : 0, to, count), (to, n) => [...new Int32Array(edgec.c.memory.buffer, to, n)]));
    }

    /** The text of token ids. */
    detokenize(tokens) {
        const { edgec } = this;
        return edgec.lend(Int32Array.from(tokens), (at) => this.twice(1, (to, count) => edgec.c.edgec_detokenize(
            this.handle, at, BigInt(tokens.length), to, count), (to, n) => new TextDecoder().decode(edgec.bytes(to, n))));
    }

    // Asks for the size first, then for the elements of `width` bytes.
    twice(width, call, read) {
        const { edgec } = this;
        const ask = (to, at, capacity) => {
            edgec.view.setBigUint64(at, BigInt(capacity), true);
            const status = call(to, at);
            if (status !== OK) throw new Error(`edgec: ${edgec.text(edgec.c.edgec_status_text(status))}`);
            return Number(edgec.view.getBigUint64(at, true));
        };
        return edgec.lend(8, (at) => {
            const count = ask(0, at, 0);
            return edgec.lend(count * width, (to) => read(to, ask(to, at, count)));
        });
    }

    /** After its sessions. */
    close() {
        this.edgec.c.edgec_close(this.handle);
        this.edgec.c.free(this.memory);
    }
}

export class Session {
    constructor(model, handle) { Object.assign(this, { model, handle }); }

    /** How many tokens it holds. */
    get position() { return this.model.edgec.c.edgec_session_position(this.handle); }

    /** Appends tokens (at most the rest of the context); the logits of the last one. */
    step(tokens) {
        const { edgec, info } = this.model;
        return edgec.lend(Int32Array.from(tokens), (at) => edgec.lend(4 * info.vocab, (to) => {
            const status = edgec.c.edgec_step(this.handle, at, tokens.length, to);
            edgec.check(status, edgec.c.edgec_last_error(this.handle));
            return new Float32Array(edgec.c.memory.buffer, to, info.vocab).slice();
        }));
    }

    /**
     * A generic model: inputs is { name: { data, shape } }, the answer the same of all outputs. data is a typed array of
     * the input's type, 16-bit floats as their bits.
     */
    run(inputs) {
        const { edgec } = this.model, ports = this.model.inputs, results = this.model.outputs;
        const names = Object.keys(inputs), wrong = names.find((name) => !ports.some((port) => port.name === name));
        if (wrong !== undefined)
            throw new Error(`edgec: input ${wrong}: wanted one of ${ports.map((port) => port.name).join(', ')}`);
        const held = [];
        const hold = (data) => {
            const length = typeof data === 'number' ? data : data.length, at = edgec.allocate(length);
            held.push(at);
            if (typeof data === 'number') edgec.bytes(at, length).fill(0);
            else edgec.bytes(at, length).set(data);
            return at;
        };
        const describe = (at, port, shape) => {
            const name = hold(new TextEncoder().encode(port.name + '\0')), view = edgec.view;
            view.setUint32(at, TENSOR, true), view.setUint32(at + 4, port.dtype, true);
            view.setUint32(at + RANK, shape.length, true), view.setUint32(at + NAME, name, true);
            shape.forEach((size, k) => view.setBigInt64(at + SHAPE + 8 * k, BigInt(size), true));
        };
        const place = (at, data, length) => {
            edgec.view.setUint32(at + DATA, data, true);
            edgec.view.setBigUint64(at + BYTES, BigInt(length), true);
        };
        try {
            const given = hold(TENSOR * (names.length || 1)), found = hold(TENSOR * results.length);
            names.forEach((name, i) => {
                const port = ports.find((p) => p.name === name), { data, shape } = inputs[name], kind = ARRAYS[port.dtype];
                if (!(data instanceof kind))
                    throw new Error(`edgec: input ${name}: found ${data?.constructor?.name}, wanted ${kind.name}`);
                if (!Array.isArray(shape) || shape.length > 8) throw new Error(`edgec: input ${name}: no shape`);
                describe(given + TENSOR * i, port, shape);
                place(given + TENSOR * i, hold(bytesOf(data, name)), data.byteLength);
            });
            results.forEach((port, i) => describe(found + TENSOR * i, port, []));
            const run = () => edgec.check(
                edgec.c.edgec_run(this.handle, given, names.length, found, results.length),
                edgec.c.edgec_last_error(this.handle));
            run();  // without memory: the runtime fills in the shapes
            const answers = results.map((port, i) => {
                const shape = shapeOf(edgec, found + TENSOR * i), kind = ARRAYS[port.dtype];
                const length = shape.reduce((all, size) => all * size, kind.BYTES_PER_ELEMENT), at = hold(length);
                place(found + TENSOR * i, at, length);
                return { port, shape, kind, at, length };
            });
            run();
            return Object.fromEntries(answers.map(({ port, shape, kind, at, length }) =>
                [port.name, { data: new kind(edgec.bytes(at, length).slice().buffer), shape }]));
        } finally {
            held.forEach((at) => edgec.c.free(at));
        }
    }

    close() { this.model.edgec.c.edgec_session_destroy(this.handle); }
}

function shapeOf(edgec, at) {
    return Array.from({ length: edgec.view.getUint32(at + RANK, true) },
                      (_, k) => Number(edgec.view.getBigInt64(at + SHAPE + 8 * k, true)));
}

/** The lowest id of the largest logit. */
export const argmax = (logits) => logits.reduce((best, x, i) => (x > logits[best] ? i : best), 0);
