// What test_wasm.py asks of the loader in runtime/wasm: wasm.mjs COMMAND FOLDER [ARGUMENTS]; answers in JSON.
import { readFile, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { argv, stdout } from 'node:process';
import { WASI } from 'node:wasi';

import { argmax, Edgec, Model } from '../../runtime/wasm/edgec.mjs';

const [command, folder, ...words] = argv.slice(2);
const library = await readFile(join(folder, 'edgec.wasm'));
const bundle = () => readFile(join(folder, 'model.edgec'));

/** The error's words, or null. */
function attempt(call) {
    try {
        call();
        return null;
    } catch (error) {
        return error.message;
    }
}

/** A Model by edgec_open, which reads the file itself. */
function openPath(edgec, path) {
    return edgec.lend(new TextEncoder().encode(path + '\0'), (at) => edgec.lend(4, (handle) => {
        edgec.check(edgec.c.edgec_open(at, 0, handle, edgec.words, 512), edgec.words);
        return new Model(edgec, edgec.view.getUint32(handle, true), 0);
    }));
}

/** The logits of every step: the prompt at once, its end alone, then the most likely token each time. */
function steps(model, prompt, count) {
    const session = model.session({ context: prompt.length + count });
    const logits = [session.step(prompt.slice(0, -1)), session.step(prompt.slice(-1))], tokens = [];
    while (tokens.length < count) {
        tokens.push(argmax(logits.at(-1)));
        if (tokens.length < count) logits.push(session.step(tokens.slice(-1)));
    }
    session.close();
    return { tokens, logits: logits.map((row) => Buffer.from(row.buffer).toString('base64')) };
}

const commands = {
    /** TOKENS COUNT: everything in the module's own memory, by the loader's own system calls. */
    async generate(tokens, count) {
        const edgec = await Edgec.load(library), model = edgec.open(await bundle());
        const golden = edgec.lend(32, (options) => {
            edgec.view.setUint32(options, 32, true);
            return edgec.c.edgec_selftest(model.handle, options, edgec.words, 512);
        });
        const answer = { info: model.info, golden, words: edgec.text(edgec.words),
                         ...steps(model, tokens.split(',').map(Number), Number(count)) };
        model.close();
        return answer;
    },

    /** TOKENS COUNT ISA: files and environment by node's WASI. */
    async files(tokens, count, isa) {
        const wasi = new WASI({ version: 'preview1', preopens: { '/model': folder }, env: { EDGEC_ISA: isa } });
        const edgec = await Edgec.load(library, wasi);
        const model = openPath(edgec, '/model/model.edgec');
        const answer = { info: model.info, ...steps(model, tokens.split(',').map(Number), Number(count)),
                         missing: attempt(() => openPath(edgec, '/model/missing')),
                         outside: attempt(() => openPath(edgec, '/etc/passwd')),
                         directory: attempt(() => openPath(edgec, '/model/include')) };
        model.close();
        return answer;
    },

    /** What happens where memory ends: 32-bit addresses, and a module that has taken nearly all of them. */
    async limits(scratch) {
        const wasi = new WASI({ version: 'preview1', preopens: { '/scratch': scratch } });
        const edgec = await Edgec.load(library, wasi), model = edgec.open(await bundle());
        const huge = attempt(() => edgec.allocate(5 * 2 ** 30));
        const file = await open(join(scratch, 'sparse'), 'w');
        await file.truncate(5 * 2 ** 30);
        const beyond = attempt(() => openPath(edgec, '/scratch/sparse'));
        const taken = [];
        for (let size = 2 ** 30; size >= 2 ** 22; size /= 2)  // whole blocks of the C library, which are powers of two
            for (let at; (at = edgec.c.malloc(size - 4096)) !== 0;) taken.push(at);
        await file.truncate(64 * 2 ** 20);
        const full = { file: attempt(() => openPath(edgec, '/scratch/sparse')),
                       session: attempt(() => model.session()) };
        await file.close();
        await rm(join(scratch, 'sparse'));
        taken.forEach((at) => edgec.c.free(at));
        const session = model.session({ context: 8 });
        const overrun = attempt(() => session.step(new Array(9).fill(5)));
        const limited = attempt(() => model.session({ memory: 1000 }));
        return { huge, beyond, full, overrun, limited, after: session.step([5]).length };
    },

    /** A signed bundle, and the hexadecimal digits of its key. */
    async signed(digits) {
        const edgec = await Edgec.load(library), whole = await bundle(), publicKey = Buffer.from(digits, 'hex');
        const changed = Buffer.from(whole), other = Buffer.from(publicKey);
        changed[whole.length - 200] ^= 1;  // among the weights
        other[3] ^= 1;
        const open = (data, options) => attempt(() => edgec.open(data, options).close());
        return { pinned: open(whole, { publicKey }), free: open(whole), other: open(whole, { publicKey: other }),
                 short: open(whole, { publicKey: publicKey.subarray(1) }), changed: open(changed, { publicKey }),
                 unseen: open(changed) };
    },

    /** Keys and bundles of every type that holds bytes, and what is none; an Error's words, null for a model. */
    async kinds(digits) {
        const edgec = await Edgec.load(library), whole = await bundle(), key = Uint8Array.from(Buffer.from(digits, 'hex'));
        const around = new Uint8Array(64).fill(7), open = (data, options) => attempt(() => edgec.open(data, options).close());
        around.set(key, 16);
        const shared = new SharedArrayBuffer(32);
        new Uint8Array(shared).set(key);
        const keys = { buffer: key.buffer, bytes: key, words: new Uint32Array(key.buffer), wide: new BigInt64Array(key.buffer),
                       floats: new Float64Array(key.buffer), view: new DataView(around.buffer, 16, 32), shared,
                       part: around.subarray(16, 48), odd: new Uint16Array(around.buffer, 16, 16), none: null,
                       around: around.buffer, empty: new ArrayBuffer(0), digits, number: 32, list: [...key],
                       object: { byteLength: 32 }, undefined: undefined, text: '', zero: 0 };
        const other = Uint8Array.from(key, (byte, i) => byte ^ (i === 3));
        const file = Uint8Array.from(whole);
        const bundles = { buffer: file.buffer, view: new DataView(file.buffer), path: 'model.edgec' };
        return { keys: Object.fromEntries(Object.entries(keys).map(([kind, publicKey]) => [kind, open(whole, { publicKey })])),
                 other: open(whole, { publicKey: other.buffer }),
                 bundles: Object.fromEntries(Object.entries(bundles).map(([kind, data]) => [kind, open(data)])) };
    },

    /** Damaged and foreign bytes. */
    async damage() {
        const edgec = await Edgec.load(library), whole = await bundle();
        const changed = Buffer.from(whole);
        changed[200] ^= 1;
        return { empty: attempt(() => edgec.open(Buffer.alloc(0))), short: attempt(() => edgec.open(whole.subarray(0, 1000))),
                 changed: attempt(() => edgec.open(changed)),
                 path: attempt(() => openPath(edgec, 'model.edgec')), fine: edgec.open(whole).info.isa };
    },
};
stdout.write(JSON.stringify(await commands[command](...words)));
