export interface Token { token: number; text: string }
export interface GenerateOptions { maxTokens?: number; choose?: (logits: Float32Array) => number }

export declare class Model {
    /** library: the bytes of edgec.wasm; bundle: those of model.edgec. */
    static load(library: BufferSource, bundle: BufferSource, options?: { context?: number; memory?: number }): Promise<Model>;
    /** Appends a prompt (text, or ids) and generates. */
    generate(prompt: string | number[], options?: GenerateOptions): AsyncGenerator<Token, void, void>;
    close(): void;
}
