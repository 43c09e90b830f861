@TYPES@

export declare class Model {
    /** library: the bytes of edgec.wasm; bundle: those of model.edgec. */
    static load(library: BufferSource, bundle: BufferSource, options?: { memory?: number }): Promise<Model>;
    run(inputs: Inputs): Outputs;
    close(): void;
}
