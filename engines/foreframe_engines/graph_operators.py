"""The operators that a bundle's graphs may run: arithmetic on tensors, decided by the inputs alone.

Left out on purpose: `Loop` and `Scan` (they need not end), random numbers (a member's noise is an input),
`DynamicQuantizeLinear` (one row would change another's scale), texts, sequences, and decoders of pictures.
"""

DOMAINS = frozenset({"", "ai.onnx"})
OPSETS = range(11, 26)

_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
    Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""
_REDUCTIONS = """
    ArgMax ArgMin CumSum Hardmax LogSoftmax ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK
"""
_LAYERS = """
    Attention AveragePool BatchNormalization Conv ConvInteger ConvTranspose DFT DequantizeLinear Einsum Gemm
    GlobalAveragePool GlobalMaxPool GroupNormalization InstanceNormalization LRN LayerNormalization LpNormalization
    MatMul MatMulInteger MaxPool MeanVarianceNormalization QLinearConv QLinearMatMul QuantizeLinear RMSNormalization
    RotaryEmbedding
"""
_SHAPES = """
    CenterCropPad Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements
    GatherND GridSample Identity If NonZero OneHot Pad Range Reshape Resize ReverseSequence ScatterElements ScatterND
    Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Upsample
"""

OPERATORS = frozenset(f"{_ELEMENTWISE} {_REDUCTIONS} {_LAYERS} {_SHAPES}".split())
