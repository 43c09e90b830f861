/* A negative count: a size that the model does not take, which edgec_run will say in words. */
static int64_t bounded(int64_t count) { return count < 0 ? 0 : count > INT32_MAX ? INT32_MAX : count; }

JNIEXPORT jlongArray JNICALL NAME(counts)(JNIEnv *env, jobject self@SIZES@) {
    const jlong counts[] = {@COUNTS@};
    jlongArray found = (*env)->NewLongArray(env, @N_OUTPUTS@);
    (void)self;
    if (found) (*env)->SetLongArrayRegion(env, found, 0, @N_OUTPUTS@, counts);
    return found;
}

JNIEXPORT void JNICALL NAME(run)(JNIEnv *env, jobject self, jlong handle@SIZES@@ARRAYS@) {
    edgec_status status = EDGEC_OK;
    (void)self;
@CHECKS@@GETS@    if (@ALL@) status = @ID@_run(of(handle), @CALL@);
    else status = EDGEC_ERROR_MEMORY;
@RELEASES@    if (status) fail(env, status, @ID@_error(of(handle)));
}
