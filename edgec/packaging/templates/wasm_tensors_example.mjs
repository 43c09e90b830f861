// Runs the model once under node, on made-up values, and prints the outputs:  node example.mjs
import { readFile } from 'node:fs/promises';

import { Model } from './@ID@.mjs';

const file = (name) => readFile(new URL(name, import.meta.url));
const model = await Model.load(await file('edgec.wasm'), await file('model.edgec'));
const outputs = model.run({
@FEEDS@
});
for (const [name, { data }] of Object.entries(outputs)) console.log(Array.from(data, (value) => `${name} ${value}`).join('\n'));
model.close();
