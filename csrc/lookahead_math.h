// The look-ahead of one element, for both devices. No torch header.
#pragma once

#include "softmax_math.h"

namespace fastmeta {

// theta* = theta - lr (gain (g + weight_decay theta) + carry b), with lr multiplied out. The products are taken in
// double and rounded once, so that both devices and all dtypes step by the same rates.
template <class A>
struct LookaheadRates {
  A slope, decay, pull;

  FASTMETA_HD LookaheadRates(double lr, double gain, double carry, double weight_decay)
      : slope(static_cast<A>(lr * gain)),
        decay(static_cast<A>(lr * gain * weight_decay)),
        pull(static_cast<A>(lr * carry)) {}

  // Not (1 - decay) theta: the factor's rounding would be as large as a thousandth of a usual weight decay.
  FASTMETA_HD A moved(A theta, A g, A b) const { return theta - (slope * g + decay * theta + pull * b); }
};

}  // namespace fastmeta
