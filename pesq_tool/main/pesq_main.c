/* Command line for the ITU-T P.862 (PESQ) reference code: score one degraded wave file against its reference.
 *
 *   pesq REF DEG +16000|+8000 [+wb]
 *
 * The options may stand anywhere, as in the ITU's own program, whose last line of output is printed in the same words:
 *
 *   P.862 Prediction (Raw MOS, MOS-LQO):  = 1.563	1.355      narrow band, P.862 and P.862.1
 *   P.862.2 Prediction (MOS-LQO):  = 1.036                   wide band (+wb), P.862.2
 *
 * Differences from the ITU's program: the RIFF chunks are read instead of skipping 44 bytes, any other kind of file is an
 * error, paths may have any length, no results file is written, and an error is one line on stderr and exit status 1.
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pesqmain.h" /* pesq_measure; must stand before pesqio.h */
#include "pesqio.h"   /* select_rate */

#define WAVE_FORMAT_PCM 0x0001
#define WAVE_FORMAT_EXTENSIBLE 0xFFFE

static void fail(const char *format, ...)
{
    va_list arguments;

    fputs("pesq: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

static unsigned long little_endian(const unsigned char *bytes, int n_bytes)
{
    unsigned long value = 0;

    while (n_bytes-- > 0)
        value = value << 8 | bytes[n_bytes];
    return value;
}

/* Read a whole file. The caller frees the bytes. */
static unsigned char *read_file(const char *path, size_t *n_bytes)
{
    FILE *file = fopen(path, "rb");
    size_t capacity = 1 << 16;
    unsigned char *bytes = malloc(capacity);

    if (file == NULL)
        fail("%s: cannot open: %s", path, strerror(errno));
    *n_bytes = 0;
    while (bytes != NULL) {
        *n_bytes += fread(bytes + *n_bytes, 1, capacity - *n_bytes, file);
        if (*n_bytes < capacity)
            break;
        capacity *= 2;
        bytes = realloc(bytes, capacity);
    }
    if (bytes == NULL)
        fail("%s: out of memory", path);
    if (ferror(file))
        fail("%s: cannot read: %s", path, strerror(errno));
    fclose(file);
    return bytes;
}

/* Check the "fmt " chunk: 16-bit mono PCM at the given rate, plain or WAVE_FORMAT_EXTENSIBLE. */
static void check_format(const char *path, const unsigned char *chunk, size_t size, unsigned long sample_rate)
{
    unsigned long tag, n_channels, rate, n_bits;

    if (size < 16)
        fail("%s: expected a fmt chunk of at least 16 bytes, found %lu", path, (unsigned long)size);
    tag = little_endian(chunk, 2);
    n_channels = little_endian(chunk + 2, 2);
    rate = little_endian(chunk + 4, 4);
    n_bits = little_endian(chunk + 14, 2);
    if (tag == WAVE_FORMAT_EXTENSIBLE && size >= 26)
        tag = little_endian(chunk + 24, 2); /* the first two bytes of the sub-format GUID */
    if (tag != WAVE_FORMAT_PCM || n_channels != 1 || n_bits != 16 || rate != sample_rate)
        fail("%s: expected 16-bit mono PCM (format 0x0001) at %lu Hz, "
             "found format 0x%04lx, %lu bits, %lu channel(s), %lu Hz; convert the file first", path, sample_rate, tag, n_bits, n_channels, rate);
}

/* Read the samples of a RIFF wave file, on the scale of 16-bit integers. The caller frees them. */
static float *read_wave(const char *path, unsigned long sample_rate, long *n_samples)
{
    size_t n_bytes, position, size = 0;
    unsigned char *bytes = read_file(path, &n_bytes);
    int has_format = 0;
    float *samples;
    long i;

    if (n_bytes < 12 || memcmp(bytes, "RIFF", 4) != 0 || memcmp(bytes + 8, "WAVE", 4) != 0)
        fail("%s: expected a RIFF wave file, found something else; convert the file first", path);

    /* A chunk is a name of 4 bytes, its size in 4 bytes, its content, and a padding byte where the size is odd. */
    for (position = 12;; position += size + size % 2) {
        if (position + 8 > n_bytes)
            fail("%s: expected a %s chunk, found the end of the file", path, has_format ? "data" : "fmt");
        size = little_endian(bytes + position + 4, 4);
        position += 8;
        if (size > n_bytes - position)
            fail("%s: a chunk of %lu bytes is announced, %lu bytes are left; the file is truncated", path,
                 (unsigned long)size, (unsigned long)(n_bytes - position));
        if (memcmp(bytes + position - 8, "fmt ", 4) == 0) {
            check_format(path, bytes + position, size, sample_rate);
            has_format = 1;
        } else if (memcmp(bytes + position - 8, "data", 4) == 0) {
            break;
        }
    }
    if (!has_format)
        fail("%s: expected a fmt chunk before the data chunk, found none", path);
    if (size == 0 || size % 2 != 0)
        fail("%s: expected samples of 2 bytes, found a data chunk of %lu bytes", path, (unsigned long)size);

    *n_samples = (long)(size / 2);
    samples = malloc(*n_samples * sizeof *samples);
    if (samples == NULL)
        fail("%s: out of memory", path);
    for (i = 0; i < *n_samples; i++) {
        long value = (long)little_endian(bytes + position + 2 * i, 2);
        samples[i] = (float)(value < 32768 ? value : value - 65536);
    }
    free(bytes);
    return samples;
}

/* Score the pair and print the line of the result. */
static void measure(const char *reference_path, const char *degraded_path, long sample_rate, int is_wide_band)
{
    SIGNAL_INFO reference = {0}, degraded = {0};
    ERROR_INFO *result;
    long error_flag = 0;
    char *error_type = "unknown error";
    float *reference_samples = read_wave(reference_path, sample_rate, &reference.Nsamples);
    float *degraded_samples = read_wave(degraded_path, sample_rate, &degraded.Nsamples);

    /* The ITU code works on copies of these; path_name and file_name are for its results file and stay empty. */
    reference.data = reference_samples;
    degraded.data = degraded_samples;
    reference.input_filter = degraded.input_filter = is_wide_band ? 2 : 1;

    /* The ITU code lists at most MAXNUTTERANCES utterances (stretches of speech of at least 0.2 s) and never checks: a
     * longer list runs on behind the struct. The room for it keeps the memory safe until the count is checked below. */
    result = calloc(1, sizeof *result + (reference.Nsamples / (sample_rate / 5) + 1) * sizeof(long));
    if (result == NULL)
        fail("%s: out of memory", reference_path);
    result->mode = is_wide_band ? WB_MODE : NB_MODE;

    select_rate(sample_rate, &error_flag, &error_type);
    pesq_measure(&reference, &degraded, result, &error_flag, &error_type);

    if (error_flag != 0)
        fail("%s, %s: %.*s", reference_path, degraded_path, (int)strcspn(error_type, "\n"), error_type);
    if (result->Nutterances >= MAXNUTTERANCES)
        fail("%s: the ITU code handles fewer than %d utterances, found %ld; cut both files into shorter pieces",
             reference_path, MAXNUTTERANCES, result->Nutterances);
    if (!isfinite(result->mapped_mos))
        fail("%s, %s: the score is not a number; is one of the files silent?", reference_path, degraded_path);

    if (is_wide_band)
        printf("P.862.2 Prediction (MOS-LQO):  = %.3f\n", result->mapped_mos);
    else
        printf("P.862 Prediction (Raw MOS, MOS-LQO):  = %.3f\t%.3f\n", result->pesq_mos, result->mapped_mos);
    if (fflush(stdout) != 0)
        fail("cannot write the score: %s", strerror(errno));
    free(result);
    free(reference_samples);
    free(degraded_samples);
}

int main(int argc, char **argv)
{
    const char *paths[2];
    int n_paths = 0, is_wide_band = 0, i;
    long sample_rate = 0;

    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "+16000") == 0)
            sample_rate = 16000;
        else if (strcmp(argv[i], "+8000") == 0)
            sample_rate = 8000;
        else if (strcmp(argv[i], "+wb") == 0)
            is_wide_band = 1;
        else if (argv[i][0] != '+' && n_paths < 2)
            paths[n_paths++] = argv[i];
        else
            fail("unexpected argument %s; usage: pesq REF DEG +16000|+8000 [+wb]", argv[i]);
    }
    if (n_paths < 2 || sample_rate == 0)
        fail("expected two wave files and their sample rate; usage: pesq REF DEG +16000|+8000 [+wb]");
    if (is_wide_band && sample_rate != 16000)
        fail("+wb (P.862.2) needs +16000");

    measure(paths[0], paths[1], sample_rate, is_wide_band);
    return EXIT_SUCCESS;
}
