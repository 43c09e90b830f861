// Continues a prompt with a compiled language model, under node and without native code.
//
//     edgec compile examples/models/prose_lm --target wasm32 -o out
//     node examples/embed_wasm/run.mjs out "It was a quiet evening" 60
//     node examples/embed_wasm/run.mjs out --tokens 271,311,258 60     # token ids in, token ids out
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { argv, exit, stdout } from 'node:process';

import { argmax, Edgec } from '../../runtime/wasm/edgec.mjs';

const words = argv.slice(2), ids = words[1] === '--tokens' && words.splice(1, 1).length === 1;
if (words.length !== 3) {
    console.error('usage: run.mjs FOLDER PROMPT COUNT, or run.mjs FOLDER --tokens ID,ID,... COUNT');
    exit(2);
}
const [folder, prompt] = words, count = Number(words[2]);

const edgec = await Edgec.load(await readFile(join(folder, 'edgec.wasm')));
const model = edgec.open(await readFile(join(folder, 'model.edgec')));
let tokens = ids ? prompt.split(',').map(Number) : model.tokenize(prompt);
const session = model.session({ context: Math.min(model.info.context, tokens.length + count) });

const found = [];
while (found.length < count) {
    const next = argmax(session.step(tokens));
    if (next === model.info.eos) break;
    found.push(next);
    tokens = [next];
}
stdout.write((ids ? found.join(',') : prompt + model.detokenize(found)) + '\n');
session.close();
model.close();
