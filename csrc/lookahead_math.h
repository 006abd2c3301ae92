// The look-ahead of one element, for both devices. No torch header.
#pragma once

#include "softmax_math.h"

namespace fastmeta {

// theta* = theta - lr (gain (g + weight_decay theta) + carry b), with lr multiplied out. The products are taken in
// double and rounded once, so that both devices and all dtypes step by the same rates. With lr = 0 theta* is theta
// whatever g holds: a step that must not count is one of length zero, and costs no pass of its own.
template <class A>
struct LookaheadRates {
  A slope, decay, pull;
  bool still;

  FASTMETA_HD LookaheadRates(double lr, double gain, double carry, double weight_decay)
      : slope(static_cast<A>(lr * gain)),
        decay(static_cast<A>(lr * gain * weight_decay)),
        pull(static_cast<A>(lr * carry)),
        still(lr == 0) {}

  // Not (1 - decay) theta: the factor's rounding would be as large as a thousandth of a usual weight decay.
  FASTMETA_HD A moved(A theta, A g, A b) const {
    return still ? theta : theta - (slope * g + decay * theta + pull * b);
  }
};

}  // namespace fastmeta
