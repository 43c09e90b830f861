struct sink {
    JNIEnv *env;
    jobject listener;
    jmethodID say;
};

static int tell(void *user, int32_t token, const char *text, size_t bytes) {
    struct sink *s = (struct sink *)user;
    JNIEnv *env = s->env;
    /* As bytes: JNI's strings are not UTF-8. */
    jbyteArray array = (*env)->NewByteArray(env, (jsize)bytes);
    jboolean more;
    if (!array) return 1;
    if (bytes) (*env)->SetByteArrayRegion(env, array, 0, (jsize)bytes, (const jbyte *)text);
    more = (*env)->CallBooleanMethod(env, s->listener, s->say, (jint)token, array);
    (*env)->DeleteLocalRef(env, array);
    return (*env)->ExceptionCheck(env) || !more;
}

JNIEXPORT void JNICALL NAME(generate)(JNIEnv *env, jobject self, jlong handle, jbyteArray text, jintArray tokens,
                                      jint count, jfloat temperature, jlong seed, jobject listener) {
    edgec_generate_options options = @ID@_options((uint32_t)count);
    jclass kind = (*env)->GetObjectClass(env, listener);
    struct sink s;
    edgec_status status = EDGEC_ERROR_MEMORY;
    jsize n = (*env)->GetArrayLength(env, text ? (jarray)text : (jarray)tokens);
    (void)self;
    s.env = env, s.listener = listener, s.say = (*env)->GetMethodID(env, kind, "say", "(I[B)Z");
    if (!s.say) return;
    options.temperature = temperature, options.seed = (uint64_t)seed;
    options.on_token = tell, options.user = &s;
    if (text) {
@TEXT@    } else {
        int32_t *ids = (int32_t *)malloc(((size_t)n + 1) * sizeof *ids);
        if (ids) {
            (*env)->GetIntArrayRegion(env, tokens, 0, n, (jint *)ids);
            status = @ID@_generate_tokens(of(handle), ids, (uint32_t)n, &options, NULL);
        }
        free(ids);
    }
    if (status && status != EDGEC_ERROR_CANCELLED && !(*env)->ExceptionCheck(env))
        fail(env, status, @ID@_error(of(handle)));
}

JNIEXPORT void JNICALL NAME(reset)(JNIEnv *env, jobject self, jlong handle) {
    const edgec_status status = @ID@_reset(of(handle));
    (void)self;
    if (status) fail(env, status, @ID@_error(of(handle)));
}
