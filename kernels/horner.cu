// steps.linearity in one pass: out[f, p] = sum over k of coefficients[k, p] * electrons[f, p]**k, by Horner's rule.
//
// Layout   electrons and out (frame, pixel) float64, coefficients (degree + 1, pixel), ascending powers; C order.
// Mapping  A thread has one pixel, keeps its coefficients in registers and steps through frames, gridDim.y apart:
//          neighbouring threads touch neighbouring words. Any grid gives the same bits.
// Bytes    16 a sample, read once and written once. The array expression `result * electrons + c` of degree 5 makes ten
//          passes: 24 bytes for each product and 16 for each sum, as its coefficients stay in the cache. It begins with
//          zeros and a sum, 24 bytes more. Together this makes 224 bytes a sample.
// Work     Each product and each sum is rounded, none is fused, so the bits are those of the expression.

#define DEGREE 5

extern "C" __global__ void __launch_bounds__(128)
horner(const double *__restrict__ electrons, const double *__restrict__ coefficients, long long n_frames,
       long long n_pixels, double *__restrict__ out)
{
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x; pixel < n_pixels; pixel += stride) {
        double c[DEGREE + 1];
        for (int k = 0; k <= DEGREE; ++k)
            c[k] = __ldg(coefficients + k * n_pixels + pixel);
        for (long long frame = blockIdx.y; frame < n_frames; frame += gridDim.y) {
            const double n = __ldg(electrons + frame * n_pixels + pixel);
            double result = __dadd_rn(0.0, c[DEGREE]); // as in the expression, a coefficient of -0.0 becomes 0.0
            for (int k = DEGREE - 1; k >= 0; --k)
                result = __dadd_rn(__dmul_rn(result, n), c[k]);
            out[frame * n_pixels + pixel] = result;
        }
    }
}
