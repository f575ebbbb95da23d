// Host-only stand-in for CUDA's driver: kernels that are compiled at run time, Triton's and AOTInductor's.
#include <cuda.h>
#include <cstdlib>
#include <vector_types.h>
void name_kernel(const void* f, const char* name);
int launch(const void* f, dim3 g, dim3 b);
int& card();
int cards();
extern "C" {
int cudaDeviceGetAttribute(int* v, int attr, int);
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* v) { *v = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* d, int i) { *d = i; return i < cards() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
CUresult cuDeviceTotalMem(size_t* n, CUdevice) { *n = 80ull << 30; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* n) { *n = cards(); return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* v, CUdevice_attribute attr, CUdevice d) { cudaDeviceGetAttribute(v, attr, d); return CUDA_SUCCESS; }
// A context is of the card by whose number it is greater than 0x70.
CUresult cuCtxGetCurrent(CUcontext* c) { *c = (CUcontext)(0x70 + (size_t)card()); return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { card() = (int)((size_t)c - 0x70); return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* d) { *d = card(); return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice d) { *c = (CUcontext)(0x70 + (size_t)d); return CUDA_SUCCESS; }
CUresult cuModuleLoad(CUmodule* m, const char*) { *m = (CUmodule)0x71; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule* m, const void*) { *m = (CUmodule)0x71; return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule, const char* name) { *f = (CUfunction)malloc(1); name_kernel(*f, name); return CUDA_SUCCESS; }
CUresult cuFuncGetAttribute(int* v, CUfunction_attribute attr, CUfunction) { *v = attr == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attr == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0; return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void* v, CUpointer_attribute, CUdeviceptr p) { *(CUdeviceptr*)v = p; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** s) { *s = "fake"; return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned, CUstream, void**, void**) { return (CUresult)launch(f, {gx, gy, gz}, {bx, by, bz}); }
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void**, void**) { return (CUresult)launch(f, {c->gridDimX, c->gridDimY, c->gridDimZ}, {c->blockDimX, c->blockDimY, c->blockDimZ}); }
}
