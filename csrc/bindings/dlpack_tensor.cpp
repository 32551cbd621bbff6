#include "bindings/dlpack_tensor.h"

#include "bindings/owned.h"
#include "core/step_data.h"

namespace pertoken::bindings {

PERTOKEN_STEP_DATA constinit TensorTypes tensor_types{};

namespace {

constexpr uint32_t kMajorVersion = 1;

// DLDataTypeCode.
enum TypeCode : uint8_t {
  kFloat = 2,
  kBfloat = 4,
  kFloat8E4m3fn = 10,
  kFloat8E4m3fnuz = 11,
  kFloat8E5m2 = 12,
  kFloat8E5m2fnuz = 13
};

// DLPackExchangeAPIHeader and DLPackExchangeAPI.
struct TableHeader {
  uint32_t major;
  uint32_t minor;
  TableHeader* before;  // the same of an older major version, may be null
};

struct ExchangeTable {
  TableHeader header;
  void* allocate;
  void* managed_from_object;
  void* object_from_managed;
  int (*describe)(void* object, DlpackTensor* description);  // may be null
  void* current_stream;
};

// Of the process: its table lives as long.
using Describe = int (*)(void* object, DlpackTensor* description);
constinit Describe table_describe = nullptr;

}  // namespace

void learn_exchange_table(PyObject* tensor_type, PyObject* parameter_type) {
  const Owned capsule(PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__"));
  void* found = capsule ? PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api") : nullptr;
  PyErr_Clear();
  auto* header = static_cast<TableHeader*>(found);
  while (header != nullptr && header->major != kMajorVersion) header = header->before;
  if (tensor_types.tensor == nullptr) {
    tensor_types.tensor = reinterpret_cast<PyTypeObject*>(Py_NewRef(tensor_type));
    tensor_types.parameter = reinterpret_cast<PyTypeObject*>(Py_NewRef(parameter_type));
  }
  table_describe =
      header == nullptr ? nullptr : reinterpret_cast<const ExchangeTable*>(header)->describe;
}

bool describe_tensor(PyObject* tensor, DlpackTensor& description) noexcept {
  if (table_describe == nullptr || !is_exact_tensor(tensor)) return false;
  if (table_describe(tensor, &description) == 0) return true;
  PyErr_Clear();
  return false;
}

std::optional<FloatFormat> float_format(const DlpackTensor& description) noexcept {
  if (description.type_lanes != 1) return std::nullopt;
  switch (description.type_code << 8 | description.type_bits) {
    case kFloat << 8 | 64:
      return FloatFormat::kFloat64;
    case kFloat << 8 | 32:
      return FloatFormat::kFloat32;
    case kFloat << 8 | 16:
      return FloatFormat::kFloat16;
    case kBfloat << 8 | 16:
      return FloatFormat::kBFloat16;
    case kFloat8E4m3fn << 8 | 8:
      return FloatFormat::kFloat8E4M3FN;
    case kFloat8E4m3fnuz << 8 | 8:
      return FloatFormat::kFloat8E4M3FNUZ;
    case kFloat8E5m2 << 8 | 8:
      return FloatFormat::kFloat8E5M2;
    case kFloat8E5m2fnuz << 8 | 8:
      return FloatFormat::kFloat8E5M2FNUZ;
    default:
      return std::nullopt;
  }
}

}  // namespace pertoken::bindings
