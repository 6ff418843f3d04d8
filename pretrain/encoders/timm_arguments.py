"""Which arguments may set a timm network's architecture: a list, because timm's arguments go far beyond it.

`timm.create_model` also takes where weights are downloaded from and to which folder (`pretrained_cfg`,
`cache_dir`, `checkpoint_path`, ...), and the config of a saved encoder may come from
anywhere. What is not on the list is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import UserError, nearest

_NAMES = """
aa_layer aa_stem_only abs_win_pos_embed act_layer always_partition attn attn_act_layer attn_drop_rate
attn_groups attn_head_dim_reduction attn_mlp attn_mlp_ratio attn_only_layer_scale attn_pool_mlp_ratio
attn_pool_num_heads attn_ratio attn_stage attn_type attn_types attn_upsample avg_down base_dim base_dims
base_width bidirectional block_config block_reduce_first block_type bn_size bottle_ratio
bottleneck_width_ratio cardinality ch_div channel_attention channel_attn_v2 channel_multiplier channels
class_token cls_attn_layers cls_ratio conv_bias conv_init conv_mlp conv_ratio cpe_act crop_scale crpe_window
d2_scales deepen_factor depth depth_list depth_mult depth_token_only depths dim dim_mul dims distillation
distilled down_kernel_size down_op down_ops down_pad down_patch_size down_stride downsample downsample_block
downsample_expand_ratios downsample_kernel_size downsample_padding downsample_ratio downsamples
drop_block_rate drop_block_size drop_path_rate drop_rate dw_act_layer dynamic_img_pad dynamic_img_size
embed_dim embed_dims embed_norm embed_norm_layer encoder_pool eta expand_groups expand_ratio expansion_ratio
extra_norm_period extra_norm_stage fc_act_layer fc_norm feature_dim feature_location ffn ffn_ratio final_chs
final_norm first_stride fix_init fix_stem focal_levels focal_windows fused_conv fused_downsample
global_att_blocks global_attn_indexes global_block_counts global_pool global_pos_size group groups
growth_rate growth_rates head_bias head_dim head_hidden_size head_init_scale head_mul head_norm
head_norm_first head_widths heads hidden_sizes img_scale img_size inc_sec inference_mode init_channels
init_values initial_chs inner_dim inplanes input_3x3 intermediate_size is_downsample_block k_r k_sec
kernel_size kernel_sizes kernels key_dim layer_scale layer_scale_init_value layer_scale_init_values layers
layerscale_value levels lkc_use_act local_conv_size local_mbconv_norm local_up_to_layer locality_strength
ls_init_value mask_unit_attn mask_unit_size mbconv_expand_ratio merge_size mix_block_ratio mlp_bias
mlp_ratio mlp_ratio_token_only mlp_ratios multi_conv n_div named_blocks neck_chans nlhb no_embed_class
norm_eps norm_layer norm_layer_cl normalize_modulator num_blocks num_blocks_list num_features num_heads
num_heads_inner num_heads_outer num_init_features num_kv_heads num_levels num_reg_tokens num_rnn_layers
num_vit out_indices outlook_attention output_stride pad_type parallel_depth partial_dim patch_drop_rate
patch_kernel patch_norm patch_padding patch_size patch_sizes patch_stride pconv_fw_type pool_include_prefix
pool_size pooling_kernel_size pooling_scale pos_drop_rate pos_embed pos_embed_grid_size pos_embs
position_embedding_size post_layers pre_norm preact pretrained_window_sizes proj_bias proj_drop_rate q_pool
q_stride qk_dim qk_norm qkv_bias qkv_fused reduction ref_feat_shape reg_tokens rel_pos_dim rel_pos_type
reparam replace_stem_pool repmixer_kernel_size res_scale_init_values rope_grid_indexing rope_grid_offset
rope_jitter_coords rope_mrope_section rope_rescale_coords rope_rotate_half rope_shift_coords
rope_temperature rope_theta rope_type scale scale_attn_inner scale_attn_norm scale_mlp scale_mlp_norm
se_downsamples se_from_exp se_layer se_ratio sep_pos_embed sequential_attn serial_depths shared_rel_pos
shortcut_root small_kernels spatial_conv sr_ratios ssd_expand stages state_dim stem_bias stem_chs
stem_expand_ratio stem_hidden_dim stem_kernel_size stem_mid_norm stem_norm stem_size stem_stride stem_type
stem_use_scale_branch stem_width strict_img_size stride strides swiglu_align_to swiglu_mlp token_mixers
tokens_norm transformer_depths transformer_drop_path transition_compression_ratio types union use_abs_pos
use_abs_pos_emb use_clipped_linears use_conv use_expand_proj use_fc_norm use_grn use_lab use_layer_scale
use_mix_token use_msfa use_overlap_down use_pos_emb use_pos_embed use_post_norm use_post_norm_in_modulation
use_post_transformer_norm use_pre_transformer_norm use_rel_pos use_rel_pos_bias use_rope use_rot_pos_emb
use_shared_rel_pos_bias v2 version vit_stem weight_init widen_factor width width_factor width_list
width_mult widths window_ratio window_size window_sizes window_spec wss zero_init_last
"""
ARCHITECTURE = frozenset(_NAMES.split())


def check_architecture(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises UserError, one line, for an argument that is none of a network's architecture,
    or no plain value.
    """
    for key, value in arguments.items():
        if key not in ARCHITECTURE:
            raise UserError(
                f"{name}: {key!r} is not an argument of a network's "
                f"architecture{nearest(key, ARCHITECTURE)} (allowed are those of timm's networks that shape "
                "it: img_size, drop_path_rate, out_indices, ...)"
            )
        if not _is_plain(value):
            raise UserError(
                f"{name}: {key}={value!r} is not possible: give a number, a text, true, false or a list of "
                "them"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | bool | int | float)
