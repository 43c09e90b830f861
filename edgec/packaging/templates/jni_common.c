/* JNI functions of Native in Model.kt. Java owns a handle: a pointer to a model with its session. */
#include <jni.h>
#include <stdlib.h>

#include "@ID@.h"

#define NAME(function) Java_edgec_@JNI@_Native_##function

static @ID@_model *of(jlong handle) { return (@ID@_model *)(intptr_t)handle; }

static void fail(JNIEnv *env, edgec_status status, const char *words) {
    char text[640];
    jclass kind = (*env)->FindClass(env, "java/lang/IllegalStateException");
    snprintf(text, sizeof text, "%s: %s", edgec_status_text(status), words);
    if (kind) (*env)->ThrowNew(env, kind, text);
}

JNIEXPORT jlong JNICALL NAME(open)(JNIEnv *env, jobject self, jstring path, jint threads, jbyteArray key) {
    @ID@_model *m = (@ID@_model *)calloc(1, sizeof *m);
    const char *text = (*env)->GetStringUTFChars(env, path, NULL);
    edgec_session_options options;
    jbyte bytes[32];
    edgec_status status = EDGEC_ERROR_MEMORY;
    (void)self;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options, options.threads = (uint32_t)threads;
    if (m && key && (*env)->GetArrayLength(env, key) != 32) {
        status = EDGEC_ERROR_ARGUMENT;
        snprintf(m->message, sizeof m->message, "publicKey: wanted 32 bytes");
    } else if (m && text && key) {
        (*env)->GetByteArrayRegion(env, key, 0, 32, bytes);
        status = @ID@_open_signed(m, text, (const uint8_t *)bytes, &options);
    } else if (m && text) {
        status = @ID@_open(m, text, &options);
    }
    if (text) (*env)->ReleaseStringUTFChars(env, path, text);
    if (!status) return (jlong)(intptr_t)m;
    fail(env, status, m ? @ID@_error(m) : "");
    free(m);
    return 0;
}

JNIEXPORT void JNICALL NAME(close)(JNIEnv *env, jobject self, jlong handle) {
    (void)env, (void)self;
    if (!handle) return;
    @ID@_close(of(handle));
    free(of(handle));
}

@KIND@
