// The pseudo-inverse of a small symmetric matrix by Jacobi rotations.
#include "problem.h"

namespace edgec_solve {

void pseudo_solve(double (*a)[kMaxPlanes], const double *b, int m, double *x) {
    double v[kMaxPlanes][kMaxPlanes] = {}, largest = 0;
    for (int i = 0; i < m; ++i) v[i][i] = 1;
    for (int sweep = 0; sweep < 12; ++sweep)
        for (int p = 0; p < m; ++p)
            for (int q = p + 1; q < m; ++q) {
                if (a[p][q] == 0) continue;
                double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
                double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int k = 0; k < m; ++k) {
                    double kp = a[k][p], kq = a[k][q];
                    a[k][p] = c * kp - s * kq, a[k][q] = s * kp + c * kq;
                }
                for (int k = 0; k < m; ++k) {
                    double pk = a[p][k], qk = a[q][k];
                    a[p][k] = c * pk - s * qk, a[q][k] = s * pk + c * qk;
                    double vp = v[k][p], vq = v[k][q];
                    v[k][p] = c * vp - s * vq, v[k][q] = s * vp + c * vq;
                }
            }
    for (int i = 0; i < m; ++i) {
        x[i] = 0;
        largest = a[i][i] > largest ? a[i][i] : largest;
    }
    for (int i = 0; i < m; ++i) {
        if (!(a[i][i] > 1e-5 * largest)) continue;  // the sums are float32: less is noise
        double along = 0;
        for (int k = 0; k < m; ++k) along += v[k][i] * b[k];
        for (int k = 0; k < m; ++k) x[k] += along / a[i][i] * v[k][i];
    }
}

}  // namespace edgec_solve
