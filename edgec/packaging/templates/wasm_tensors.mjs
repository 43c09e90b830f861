// @ID@ for node and browsers; packaged by edgec @VERSION@. Calls take the caller's thread: in a browser, use a worker.
import { Edgec } from './edgec.mjs';

export class Model {
    /** library: the bytes of edgec.wasm; bundle: those of model.edgec. options.memory: most bytes of a session;
     * options.publicKey: who must have signed the bundle (edgec.mjs). */
    static async load(library, bundle, options = {}) {
        const edgec = await Edgec.load(library);
        return new Model(edgec.open(bundle, options), options);
    }

    constructor(model, { memory = 0 } = {}) {
        this.model = model;
        this.session = model.session({ memory });
    }

    /** inputs: { name: { data, shape } }, data a typed array; the outputs likewise. */
    run(inputs) { return this.session.run(inputs); }

    close() {
        this.session.close();
        this.model.close();
    }
}
