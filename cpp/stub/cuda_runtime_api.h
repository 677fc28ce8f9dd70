// TensorRT's headers want two CUDA types and nothing else of the toolkit, so the shim compiles where none is installed.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
