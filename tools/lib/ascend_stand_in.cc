// What MindSpore's Ascend plugin asks of CANN, answered without a device: objects that are only pointers, sizes,
// the bounded string functions of CANN's C library, and a device of 64 GB. All other functions are generated and
// return 0, which CANN means as success.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace {
constexpr size_t kHandleBytes = 256;
constexpr size_t kLargestCopy = 1 << 20;
constexpr int kOutOfRange = 34;  // ERANGE, as CANN's own functions say it
int current_device = 0;
void *current_context = nullptr;

void *new_handle() { return calloc(1, kHandleBytes); }

int give_handle(void **handle) {
  *handle = new_handle();
  return 0;
}
}  // namespace

// Named once for each aclnn function that a kernel has prepared; the file is the driver's.
int note_aclnn(bool *noted, const char *name) {
  const char *path = getenv("QWEN3_DRY_RUN_ACLNN");
  if (*noted || path == nullptr) return 0;
  *noted = true;
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (file < 0) return 0;
  std::string line = std::string(name) + "\n";
  if (write(file, line.data(), line.size()) < 0) *noted = false;
  close(file);
  return 0;
}

// The plugin's static initialisers write error texts into this map through inline code of CANN's headers.
namespace ge {
class StatusFactory {
 public:
  static StatusFactory *Instance();
  std::map<uint32_t, std::string> texts;
  char reserved[512];
};
StatusFactory *StatusFactory::Instance() {
  static StatusFactory one;
  return &one;
}
}  // namespace ge

extern "C" {
// A thread asks for reports of the device without end: it must wait for them, as it does on one.
int aclrtProcessReport(int) {
  usleep(20000);
  return 0;
}

const char *aclrtGetSocName() {
  const char *soc = getenv("QWEN3_DRY_RUN_SOC");
  return soc ? soc : "Ascend910B2";
}
const char *aclGetRecentErrMsg() { return ""; }
const char *HcclGetErrorString(int) { return ""; }
int aclsysGetCANNVersion(int, void *version) {
  memset(version, 0, 128);
  strcpy(static_cast<char *>(version), "8.3.RC1");
  return 0;
}

// Device
int aclrtGetDeviceCount(uint32_t *count) { *count = 16; return 0; }
int aclrtGetDevice(int32_t *id) { *id = current_device; return 0; }
int aclrtSetDevice(int32_t id) { current_device = id; return 0; }
int aclrtGetRunMode(int *mode) { *mode = 1; return 0; }
int aclrtDeviceCanAccessPeer(int32_t *can, int32_t, int32_t) { *can = 1; return 0; }
int aclrtDeviceGetStreamPriorityRange(int32_t *least, int32_t *greatest) { *least = 7; *greatest = 0; return 0; }
int aclrtCreateContext(void **context, int32_t) { return give_handle(context); }
int aclrtGetCurrentContext(void **context) {
  if (current_context == nullptr) current_context = new_handle();
  *context = current_context;
  return 0;
}
int aclrtSetCurrentContext(void *context) { current_context = context; return 0; }
int aclrtCreateStream(void **stream) { return give_handle(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t, uint32_t) { return give_handle(stream); }
int aclrtCreateEventWithFlag(void **event, uint32_t) { return give_handle(event); }
int aclrtCreateEventExWithFlag(void **event, uint32_t) { return give_handle(event); }

// Memory: pages that nobody touches cost nothing.
int aclrtGetMemInfo(int, size_t *free_bytes, size_t *total) {
  *total = static_cast<size_t>(64) << 30;
  *free_bytes = static_cast<size_t>(61) << 30;
  return 0;
}
int aclrtMalloc(void **memory, size_t bytes, int) {
  *memory = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *memory != MAP_FAILED ? 0 : 1;
}
int aclrtMallocAlign32(void **memory, size_t bytes, int policy) { return aclrtMalloc(memory, bytes, policy); }
int aclrtMallocHost(void **memory, size_t bytes) { return aclrtMalloc(memory, bytes, 0); }
int aclrtReserveMemAddress(void **memory, size_t bytes, size_t, void *, uint64_t) { return aclrtMalloc(memory, bytes, 0); }
int aclrtMallocPhysical(void **handle, size_t, void *, uint64_t) { return give_handle(handle); }
int aclrtMemcpy(void *to, size_t, const void *from, size_t bytes, int) {
  // Weights are larger, and nobody reads them here.
  if (to && from && bytes < kLargestCopy) memcpy(to, from, bytes);
  return 0;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, int kind, void *) {
  return aclrtMemcpy(to, room, from, bytes, kind);
}
int aclrtMemset(void *memory, size_t, int32_t value, size_t bytes) {
  if (memory) memset(memory, value, bytes);
  return 0;
}

// Descriptions of tensors
size_t aclDataTypeSize(int type) {
  static const uint8_t sizes[] = {4, 2, 1, 4, 1, 1, 1, 2, 2, 4, 8, 8, 8, 1, 8, 8, 8, 2, 2, 2};
  constexpr int kBfloat16 = 27;
  return type == kBfloat16 ? 2 : type >= 0 && type < 20 ? sizes[type] : 4;
}
void *aclCreateTensor() { return new_handle(); }
void *aclCreateScalar() { return new_handle(); }
void *aclCreateIntArray() { return new_handle(); }
void *aclCreateFloatArray() { return new_handle(); }
void *aclCreateBoolArray() { return new_handle(); }
void *aclCreateTensorList() { return new_handle(); }
void *aclCreateTensorDesc() { return new_handle(); }
void *aclCreateDataBuffer() { return new_handle(); }

// HCCL
int HcclCommInitRootInfo(uint32_t, const void *, uint32_t, void **comm) { return give_handle(comm); }
int HcclCommInitRootInfoConfig(uint32_t, const void *, uint32_t, void *, void **comm) { return give_handle(comm); }
int HcclCommInitClusterInfo(const char *, uint32_t, void **comm) { return give_handle(comm); }
int HcclCommInitClusterInfoConfig(const char *, uint32_t, void *, void **comm) { return give_handle(comm); }
int HcclCreateSubCommConfig(void **, uint32_t, uint32_t *, uint64_t, uint32_t, void *, void **comm) {
  return give_handle(comm);
}
int HcclGetCommName(void *, char *name) { strcpy(name, "stand-in"); return 0; }

// CANN's bounded strings
int memcpy_s(void *to, size_t room, const void *from, size_t bytes) {
  if (!to || !from || bytes > room) return kOutOfRange;
  memcpy(to, from, bytes);
  return 0;
}
int memmove_s(void *to, size_t room, const void *from, size_t bytes) {
  if (!to || !from || bytes > room) return kOutOfRange;
  memmove(to, from, bytes);
  return 0;
}
int memset_s(void *to, size_t room, int value, size_t bytes) {
  if (!to || bytes > room) return kOutOfRange;
  memset(to, value, bytes);
  return 0;
}
int strcpy_s(char *to, size_t room, const char *from) {
  if (!to || !from || strlen(from) >= room) return kOutOfRange;
  strcpy(to, from);
  return 0;
}
int strncpy_s(char *to, size_t room, const char *from, size_t most) {
  size_t length = strnlen(from, most);
  if (length >= room) return kOutOfRange;
  memcpy(to, from, length);
  to[length] = 0;
  return 0;
}
int strcat_s(char *to, size_t room, const char *from) {
  if (strlen(to) + strlen(from) >= room) return kOutOfRange;
  strcat(to, from);
  return 0;
}
int vsnprintf_s(char *to, size_t room, size_t most, const char *format, va_list values) {
  return vsnprintf(to, room < most + 1 ? room : most + 1, format, values);
}
int snprintf_s(char *to, size_t room, size_t most, const char *format, ...) {
  va_list values;
  va_start(values, format);
  int length = vsnprintf_s(to, room, most, format, values);
  va_end(values);
  return length;
}
int vsprintf_s(char *to, size_t room, const char *format, va_list values) { return vsnprintf(to, room, format, values); }
int sprintf_s(char *to, size_t room, const char *format, ...) {
  va_list values;
  va_start(values, format);
  int length = vsnprintf(to, room, format, values);
  va_end(values);
  return length;
}
char *strtok_s(char *text, const char *delimiters, char **rest) { return strtok_r(text, delimiters, rest); }
}
