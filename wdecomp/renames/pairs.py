"""Pairs of names, as data: on disk (transformers 4 and the hub) and in the running model.

One pair a line. A name is a run of whole components; `^` is the start of the parameter's name, `$`
its end, `#` the index of a layer or an expert, `{a,b}` on both sides several pairs at once. Pairs
of a section are applied in order from disk to the running model, and in reverse the other way. The
sections of a model type are applied after one another, each or not at all.

Facts from transformers 5.23, `conversion_mapping.py`.
"""

# Everywhere ----------------------------------------------------------------------------------
LEGACY = """
LayerNorm.{gamma,beta}                    LayerNorm.{weight,bias}
weight_{g,v}$                             parametrizations.weight.original{0,1}$
"""
TOWERS = """
{vision_tower,image_tower,video_tower}.vision_model  {vision_tower,image_tower,video_tower}
"""
SPARSE = """
block_sparse_moe                          mlp
"""
EXPERTS = """
experts.#.{w1,w3,w2}                      experts.#.{gate,up,down}_proj
"""

# Language models -----------------------------------------------------------------------------
NEOX = """
^.embed_out                               ^.lm_head
"""
GRANITE = """
block_sparse_moe.{in,out}put_linear.weight$  block_sparse_moe.experts.{gate_up,down}_proj$
block_sparse_moe.router.layer             block_sparse_moe.router
"""
PHIMOE = """
block_sparse_moe.gate                     mlp.router
"""
MINIMAX_M2 = """
block_sparse_moe.e_score_correction_bias  mlp.e_score_correction_bias
"""
NEMOTRON = """
^.backbone                                ^.model
"""
ARIA_TEXT = """
mlp.experts.{fc1,fc2}.weight$             mlp.experts.{gate_up,down}_proj$
"""
STEP = """
moe.gate                                  mlp.gate
moe.router_bias                           mlp.gate.e_score_correction_bias
moe.down_proj.weight$                     mlp.experts.down_proj$
share_expert                              mlp.shared_experts
"""
MOE_BIASES = """
mlp.moe_statics                           mlp.gate.moe_statics
mlp.experts.e_score_correction_bias       mlp.gate.e_score_correction_bias
"""
EXAONE_MOE = """
mlp.e_score_correction_bias               mlp.gate.e_score_correction_bias
"""
LAGUNA = """
mlp.shared_expert                         mlp.shared_experts
"""
HY_V3 = """
mlp.router.gate                           mlp.gate
mlp.expert_bias                           mlp.e_score_correction_bias
mlp.shared_mlp                            mlp.shared_experts
"""
AXK1 = """
post_mlp_layernorm                        mlp.post_mlp_layernorm
"""
AXK2 = """
{W_down,W_up}                             {mlp.fc1,mlp.fc2}
self_attn.q_b_proj                        self_attn.q_gate_proj
"""
MIMO = """
self_attn.attention_sink_bias             self_attn.sinks
"""
FLINT = """
self_attn.softmax_offset                  self_attn.sinks
"""
KOLIBRI = """
moe.router.expert_bias                    mlp.gate.e_score_correction_bias
{post_attn,post_ffn}_norm                 {post_self_attn,post_mlp}_layernorm
"""
BAILING = """
^.model.word_embeddings                   ^.model.embed_tokens
attention                                 self_attn
self_attn.{f_proj,dt_bias,A_log}          self_attn.forget_gate.{f_proj,dt_bias,A_log}
self_attn.dense                           self_attn.o_proj
mlp.gate.expert_bias                      mlp.gate.e_score_correction_bias
"""
FORGET_GATE = """
self_attn.{f_a_proj,f_b_proj}             self_attn.forget_gate.{f_a_proj,f_b_proj}
self_attn.{dt_bias,A_log}                 self_attn.forget_gate.{dt_bias,A_log}
hc_attn_{fn,base,scale}                   attn_hc.{fn,base,scale}
hc_ffn_{fn,base,scale}                    ffn_hc.{fn,base,scale}
"""
OLMO_HYBRID = """
{attention,feedforward}_layer_norm        {input,post_attention}_layernorm
"""
DEEPSEEK_V4 = """
attn                                      self_attn
ffn                                       mlp
indexer.compressor                        compressor.indexer
^.embed                                   ^.embed_tokens
^.head                                    ^.lm_head
^.hc_head_{fn,base,scale}                 ^.hc_head.hc_{fn,base,scale}
{attn,ffn}_norm                           {input,post_attention}_layernorm
hc_attn_{fn,base,scale}                   attn_hc.{fn,base,scale}
hc_ffn_{fn,base,scale}                    ffn_hc.{fn,base,scale}
attn_sink                                 sinks
indexer.weights_proj                      compressor.indexer.scorer.weights_proj
indexer.wq_b                              compressor.indexer.q_b_proj
ape                                       position_bias
{wq_a,wkv,wgate}                          {q_a_proj,kv_proj,gate_proj}
self_attn.wq_b                            self_attn.q_b_proj
{wo_a,wo_b}                               {o_a_proj,o_b_proj}
q_norm                                    q_a_norm
gate.bias                                 gate.e_score_correction_bias
shared_experts.{w1,w2,w3}                 shared_experts.{gate,down,up}_proj
"""
LFM3 = """
self_attn.gate_proj                       self_attn.g_proj
"""
# Encoders of text
NOMIC = """
encoder.layers                            layers
emb_ln                                    embeddings.LayerNorm
attn.out_proj                             self_attn.o_proj
mlp.{fc11,fc12,fc2}                       mlp.{up,gate,down}_proj
{norm1,norm2}                             post_{attention,mlp}_layernorm
"""
GTE = """
^.new                                     ^
encoder.layer.#                           layers.#
attention.o_proj                          self_attn.o_proj
{attn,mlp}_ln                             post_{attention,mlp}_layernorm
^.lm_head.norm                            ^.lm_head.layer_norm
"""
JINA = """
emb_ln                                    embeddings.LayerNorm
encoder.layers                            layers
mixer.out_proj                            self_attn.o_proj
{norm1,norm2}                             post_{attention,mlp}_layernorm
"""
TIMESFM = """
{ff0,ff1}                                 {fc1,fc2}
"""

# Vision --------------------------------------------------------------------------------------
VIT = """
attention.attention.relative_position_bias  relative_position_bias
encoder.relative_position_bias            shared_position_bias
encoder.layer.#                           layers.#
attention.attention.{query,key,value}     attention.{q,k,v}_proj
attention.output.dense                    attention.o_proj
{intermediate,output}.dense               {mlp.fc1,mlp.fc2}
"""
MAE = """
decoder.decoder_encoder.layer.#           decoder.decoder_layers.#
"""
PIXIO = """
{norm1,norm2}                             layernorm_{before,after}
^.encoder                                 ^.pixio
"""
BEIT_PYRAMID = """
^.fpn1.{0,1,3}                            ^.fpn.fpn1.{conv_transpose1,normalization,conv_transpose2}
^.fpn2.0                                  ^.fpn.fpn2
"""
MSN_HEAD = """
^.encoder                                 ^.vit.encoder
"""
DINO_V2 = """
attention.attention.{query,key,value}     attention.{q,k,v}_proj
attention.output.dense                    attention.o_proj
mlp.weights_out                           mlp.down_proj
"""
LW_DETR = """
attention.attention.{query,key,value}     attention.{q,k,v}_proj
attention.output                          attention.o_proj
"""
DINO_V3 = """
layer.#                                   model.layer.#
"""
DINO_V3_CONVNEXT = """
stages.#                                  model.stages.#
"""
SWIN = """
attention.self.{query,key,value}          attention.{q,k,v}_proj
self.relative_position_bias_table$        relative_position_bias.relative_position_bias_table$
attention.output.dense                    attention.o_proj
{intermediate,output}.dense               {mlp.fc1,mlp.fc2}
"""
SEGFORMER = """
encoder.block.#.#                         stages.#.blocks.#
encoder.{patch_embeddings,layer_norm}.#   stages.#.{patch_embeddings,layer_norm}
attention.self.{query,key,value}          attention.{q,k,v}_proj
attention.self.sr                         attention.sequence_reduction.sequence_reduction
attention.self.layer_norm                 attention.sequence_reduction.layer_norm
attention.output.dense                    attention.o_proj
mlp.{dense1,dense2}                       mlp.{fc1,fc2}
{layer_norm_1,layer_norm_2}               {layernorm_before,layernorm_after}
decode_head.linear_c                      decode_head.linear_projections
"""
VIDEO_MAE = """
attention.attention.{q,v}_bias            attention.attention.{query,value}.bias
"""
YOLOS = """
encoder.mid_position_embeddings           encoder.interpolation.mid_position_embeddings
"""
RADIO = """
^.radio_model.model.blocks.#              ^.encoder.layer.#
attn.proj                                 attention.o_proj
^.radio_model.input_conditioner           ^.input_conditioner
"""
TIMM = """
^                                         ^.timm_model
"""
# Detection
DETR = """
backbone.conv_encoder                     backbone
out_proj                                  o_proj
layers.#.{fc1,fc2}                        layers.#.mlp.{fc1,fc2}
"""
CONDITIONAL_DETR = """
decoder.layers.#.sa_{q,k}content_proj     decoder.layers.#.self_attn.{q,k}_content_proj
decoder.layers.#.sa_{q,k}pos_proj         decoder.layers.#.self_attn.{q,k}_pos_proj
decoder.layers.#.ca_{q,k}content_proj     decoder.layers.#.encoder_attn.{q,k}_content_proj
decoder.layers.#.ca_{q,k}pos_proj         decoder.layers.#.encoder_attn.{q,k}_pos_proj
decoder.layers.#.{sa_v_proj,ca_v_proj}    decoder.layers.#.{self_attn,encoder_attn}.v_proj
decoder.layers.#.ca_qpos_sine_proj        decoder.layers.#.encoder_attn.q_pos_sine_proj
"""
DETR_MASKS = """
bbox_attention.{q,k}_linear               bbox_attention.{q,k}_proj
mask_head.{lay1,gn1,lay2,gn2}             mask_head.{conv1.conv,conv1.norm,conv2.conv,conv2.norm}
mask_head.adapter1                        mask_head.fpn_stages.0.fpn_adapter
mask_head.{lay3,gn3}                   mask_head.fpn_stages.0.refine.{conv,norm}
mask_head.adapter2                        mask_head.fpn_stages.1.fpn_adapter
mask_head.{lay4,gn4}                   mask_head.fpn_stages.1.refine.{conv,norm}
mask_head.adapter3                        mask_head.fpn_stages.2.fpn_adapter
mask_head.{lay5,gn5}                   mask_head.fpn_stages.2.refine.{conv,norm}
mask_head.out_lay                         mask_head.output_conv
"""
AIFI = """
encoder.encoder.0                         encoder.aifi.0
"""
SAM3 = """
^.detector_model.vision_encoder.backbone  ^.vision_encoder.backbone
^.tracker_neck                            ^.vision_encoder.neck
^.tracker_model                           ^
"""

# Several modalities --------------------------------------------------------------------------
VISION_MODEL = """
^.vision_model                            ^
"""
TEXT_MODEL = """
^.text_model                              ^
"""
LLAVA = """
^.language_model.lm_head                  ^.lm_head
^.language_model.model                    ^.model.language_model
^.{vision_tower,image_tower,video_tower}  ^.model.{vision_tower,image_tower,video_tower}
^.{vision_model,audio_tower,encoder}      ^.model.{vision_model,audio_tower,encoder}
^.{multi_modal_projector,projector}       ^.model.{multi_modal_projector,projector}
^.{image_newline,vision_embed_tokens}     ^.model.{image_newline,vision_embed_tokens}
^.acoustic_tokenizer_encoder              ^.model.acoustic_tokenizer_encoder
^.semantic_tokenizer_encoder              ^.model.semantic_tokenizer_encoder
"""
LLAVA_BASE = """
^.language_model.model                    ^.language_model
"""
QWEN_VL = """
^.{visual,audio_tower}                    ^.model.{visual,audio_tower}
^.model.{layers,embed_tokens,norm}        ^.model.language_model.{layers,embed_tokens,norm}
"""
THINKER = """
^.thinker                                 ^
"""
QWEN_TEXT = """
^.model.language_model                    ^.model
"""
PADDLE_OCR = """
^.mlp_AR                                  ^.model.projector
"""
MINIMAX_VL = """
^.model.vision_tower.embeddings.patch_embedding  ^.model.vision_tower.embeddings.proj
^.model.vision_tower.encoder.layers       ^.model.vision_tower.layers
^.patch_merge_mlp.linear_{1,2}            ^.model.multi_modal_projector.merge_linear_{1,2}
self_attn.index_{q,k}_proj                self_attn.indexer.{q,k}_proj
self_attn.index_{q,k}_norm                self_attn.indexer.{q,k}_norm
"""
EMU3 = """
^.text_model.lm_head                      ^.lm_head
^.text_model.model                        ^.model.text_model
^.vqmodel                                 ^.model.vqmodel
"""
STEP_VL = """
^.vision_model                            ^.model.vision_model
^.vit_large_projector                     ^.model.multi_modal_projector
^.model.{layers,embed_tokens,norm}        ^.model.language_model.{layers,embed_tokens,norm}
"""
FLUX = """
double_blocks.#.img_attn                  transformer_blocks.#.attn
double_blocks.#.txt_attn.add_{q,k,v}_proj  transformer_blocks.#.attn.add_{q,k,v}_proj
single_blocks.#.to_{q,k,v}                single_transformer_blocks.#.attn.to_{q,k,v}
single_blocks.#.proj_mlp                  single_transformer_blocks.#.proj_mlp
"""
COLQWEN = """
^.vlm.model                               ^.vlm
"""
SHIELD_GEMMA = """
^.model                                   ^.model.model
"""
ERNIE_VL = """
vision_model                              vision_tower
{spatial,temporal}_linear.0               {spatial,temporal}_linear.fc1
{spatial,temporal}_linear.2               {spatial,temporal}_linear.fc2
{spatial,temporal}_linear.3               {spatial,temporal}_linear.ln
^.model.{layers,embed_tokens,norm}        ^.model.language_model.{layers,embed_tokens,norm}
"""
HYPERCLOVA = """
^.model.language_model.lm_head            ^.lm_head
^.model.vision_projector                  ^.model.projector
^.model.language_model.model              ^.model.language_model
"""
GEMMA4 = """
^.model.vision_embedder.patch_{ln1,ln2}   ^.model.embed_vision.patch_{ln1,ln2}
^.model.vision_embedder.patch_dense       ^.model.embed_vision.patch_dense
^.model.vision_embedder.{pos_embedding,pos_norm}  ^.model.embed_vision.{pos_embedding,pos_norm}
embed_vision.embedding_projection         embed_vision.multimodal_embedder.embedding_projection
"""
ALT_CLIP = """
layer.#                                   layers.#
"""
MIMI = """
^.{encoder,decoder}.layers                ^.{encoder.encoder,decoder.decoder}.layers
^.{encoder_transformer,downsample}        ^.encoder.{encoder_transformer,downsample}
^.{upsample,decoder_transformer}          ^.decoder.{upsample,decoder_transformer}
"""
T5_GEMMA = """
^.model.encoder.{layers,embed_tokens,norm}  ^.model.encoder.text_model.{layers,embed_tokens,norm}
"""
MOLMO = """
transformer.ln_f                          language_model.norm
transformer.blocks                        language_model.layers
vision_backbone.image_vit.transformer.resblocks  vision_tower.layers
attention.{wq,wk,wv,wo}                   self_attn.{q,k,v,o}_proj
feed_forward.{w1,w2}                      mlp.{fc1,fc2}
{attention,ffn}_norm                      {layer_norm1,layer_norm2}
"""
