// Runs edgec_bench.wasm under node: node.mjs PROGRAM BUNDLE ARGUMENTS... The program sees the bundle's folder and nothing else.
import { readFile } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import process, { argv, env } from 'node:process';
import { WASI } from 'node:wasi';

const [program, bundle, ...words] = argv.slice(2);
const wasi = new WASI({
    version: 'preview1', returnOnExit: true, args: ['edgec_bench', `/model/${basename(bundle)}`, ...words],
    env: env.EDGEC_ISA ? { EDGEC_ISA: env.EDGEC_ISA } : {}, preopens: { '/model': dirname(resolve(bundle)) },
});
const { instance } = await WebAssembly.instantiate(await readFile(program), { wasi_snapshot_preview1: wasi.wasiImport });
process.exitCode = wasi.start(instance);
