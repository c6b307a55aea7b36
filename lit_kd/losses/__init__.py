"""Distillation losses: functions of tensors, and small modules where a loss has trainable parts."""

from lit_kd.losses.bow import WordDistances, bow_codes, bow_loss, bow_perplexity, bow_target
from lit_kd.losses.chunked import chunked_loss
from lit_kd.losses.clipping import Clip, DACTerms, interpolated_quantiles
from lit_kd.losses.collapse import (
    effective_rank,
    feature_spread,
    mean_pairwise_cosine,
    nearest_words,
    words_in_use,
)
from lit_kd.losses.crd import ContrastMemory, CRDLoss, bank_bytes
from lit_kd.losses.dac_kl import DACKL, dac_kl
from lit_kd.losses.divergences import (
    adaptive_kl,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    total_variation,
)
from lit_kd.losses.features import (
    attention_transfer_loss,
    hierarchical_context_loss,
    hint_loss,
    nst_loss,
    similarity_preserving_loss,
)
from lit_kd.losses.logits import dist_loss, dkd_loss, kd_loss, logit_standardization_kd_loss, soft_cross_entropy
from lit_kd.losses.mcmi import class_centroids, conditional_mutual_information, mcmi_loss, surrogate_kl
from lit_kd.losses.minilm import MINILM_V1, MINILM_V2, relation_loss
from lit_kd.losses.relations import correlation_congruence_loss, pkt_loss, rkd_loss
from lit_kd.losses.reviewkd import AttentionFusion, ReviewFusion
from lit_kd.losses.scrg import cognitive_difference, error_index
from lit_kd.losses.spans import span_relation_loss, span_relations_of_rows
from lit_kd.losses.token_divergences import (
    AdaptiveKL,
    ForwardKL,
    GeneralizedJSD,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    SymmetricKL,
    TokenDivergence,
    TotalVariation,
)
from lit_kd.losses.topk import topk_kl
from lit_kd.losses.vid import VIDRegressor, vid_loss

__all__ = [
    "AdaptiveKL",
    "AttentionFusion",
    "CRDLoss",
    "Clip",
    "ContrastMemory",
    "DACKL",
    "DACTerms",
    "ForwardKL",
    "GeneralizedJSD",
    "MINILM_V1",
    "MINILM_V2",
    "ReverseKL",
    "ReviewFusion",
    "SkewForwardKL",
    "SkewReverseKL",
    "SymmetricKL",
    "TokenDivergence",
    "TotalVariation",
    "VIDRegressor",
    "WordDistances",
    "adaptive_kl",
    "attention_transfer_loss",
    "bank_bytes",
    "bow_codes",
    "bow_loss",
    "bow_perplexity",
    "bow_target",
    "chunked_loss",
    "class_centroids",
    "cognitive_difference",
    "conditional_mutual_information",
    "correlation_congruence_loss",
    "dac_kl",
    "dist_loss",
    "dkd_loss",
    "effective_rank",
    "error_index",
    "feature_spread",
    "forward_kl",
    "generalized_jsd",
    "hierarchical_context_loss",
    "hint_loss",
    "interpolated_quantiles",
    "kd_loss",
    "logit_standardization_kd_loss",
    "mcmi_loss",
    "mean_pairwise_cosine",
    "nearest_words",
    "nst_loss",
    "pkt_loss",
    "relation_loss",
    "reverse_kl",
    "rkd_loss",
    "similarity_preserving_loss",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "span_relation_loss",
    "span_relations_of_rows",
    "surrogate_kl",
    "symmetric_kl",
    "topk_kl",
    "total_variation",
    "vid_loss",
    "words_in_use",
]
