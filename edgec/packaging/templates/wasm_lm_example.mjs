// Continues a text under node:  node example.mjs "It was" 30      (token ids:  node example.mjs 1,2,3 30 --ids)
import { readFile } from 'node:fs/promises';
import { argv, stdout } from 'node:process';

import { Model } from './@ID@.mjs';

const file = (name) => readFile(new URL(name, import.meta.url));
const [prompt = 'It was', count = '30', ids] = argv.slice(2);
const model = await Model.load(await file('edgec.wasm'), await file('model.edgec'));
for await (const { token, text } of model.generate(ids ? prompt.split(',').map(Number) : prompt, { maxTokens: +count }))
    stdout.write(ids ? `${token} ` : text);
stdout.write('\n');
model.close();
