// @ID@ for node and browsers; packaged by edgec @VERSION@. Calls take the caller's thread: in a browser, use a worker.
import { argmax, Edgec } from './edgec.mjs';

const STOPS = @STOPS@;  // each of these tokens ends a text

export class Model {
    /** library: the bytes of edgec.wasm; bundle: those of model.edgec. options.context: most tokens;
     * options.publicKey: who must have signed the bundle (edgec.mjs). */
    static async load(library, bundle, options = {}) {
        const edgec = await Edgec.load(library);
        return new Model(edgec.open(bundle, options), options);
    }

    constructor(model, { context = 0, memory = 0 } = {}) {
        this.model = model;
        this.session = model.session({ context, memory });
        this.pending = null;
        this.turn = 0;
    }

    /**
     * Appends a prompt (text, or ids) and generates: an async iterator of { token, text }, greedy unless
     * options.choose(logits) picks the next id. options.maxTokens: so many at most. Tokens that begin a text come where
     * nothing was said before. What was yielded is part of the conversation, also when the loop is left there. A
     * generation that begins while another one waits ends that one.
     */
    async *generate(prompt, { maxTokens = 64, choose = argmax } = {}) {
        if (!this.session) throw new Error('the model is closed');
        this.settle();
        const text = typeof prompt === 'string', found = [], turn = ++this.turn;
        const ids = text ? this.model.tokenize(prompt, this.session.position === 0) : prompt;
        let said = '', logits = this.session.step(ids);
        while (found.length < maxTokens) {
            const token = choose(logits);
            if (STOPS.includes(token)) return;
            found.push(token);
            const last = found.length === maxTokens, all = text ? this.model.detokenize(found) : '';
            // What ends in the middle of a character waits for the rest of it.
            const ready = last || !all.endsWith('\ufffd') ? all : said;
            this.pending = token;
            try {
                yield { token, text: ready.slice(said.length) };
            } finally {
                if (turn === this.turn) logits = this.settle();
            }
            if (turn !== this.turn || !this.session) return;
            said = ready;
        }
    }

    /** Gives the session a token that was yielded and not yet followed up. */
    settle() {
        if (this.pending === null || !this.session) return null;
        const token = this.pending;
        this.pending = null;
        return this.session.step([token]);
    }

    close() {
        if (!this.session) return;
        this.session.close();
        this.session = null;
        this.model.close();
    }
}
