"""The cases of every launcher, by group: for both devices, and those of geometries and refusals that CUDA alone has."""

from __future__ import annotations

import functools

from tests.support.emulation import cases, cluster_cases, image_cases, lookahead_cases

BOTH = [
    cases.soft_cross_entropy,
    cases.soft_cross_entropy_backward,
    cases.soft_cross_entropy_hvp,
    cases.soft_cross_entropy_label_grad,
    cases.bad_logits,
    cases.row_dot,
    cases.instance_loss,
    cases.large_values,
    cases.instance_label_step,
    cases.instance_label_step_rounded,
    cases.class_loss,
    cases.class_label_step,
    cases.empty_batch,
    image_cases.load_images,
    lookahead_cases.lookahead_update,
]
CUDA = [
    *BOTH,
    cases.instance_label_step_refused,
    cases.streamed,
    cases.one_row,
    cases.class_label_step_refused,
    cluster_cases.instance_loss_in_clusters,
    cluster_cases.instance_label_step_in_clusters,
]


@functools.cache
def cases_of(group) -> list[cases.Case]:
    return list(group())
