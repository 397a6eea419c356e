// Classifies one input with TensorFlow Lite for Microcontrollers. Everything about the model is in model_data.h; how a
// sample becomes an input is in preprocess.json, and golden.npz has inputs with their outputs to check a port with.
//
// On an Ethos-U, the driver must be initialised before (ethosu_init of the board's support package).

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "model_data.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

alignas(16) std::uint8_t tensor_arena[edgeft::kTensorArenaBytes];

// Returns the number that the model's input holds for a real (preprocessed) value.
edgeft::InputValue Quantize(float value) {
  if (edgeft::kInputScale == 0.0f) return static_cast<edgeft::InputValue>(value);
  using Limits = std::numeric_limits<edgeft::InputValue>;
  const float steps = std::nearbyint(value / edgeft::kInputScale) + static_cast<float>(edgeft::kInputZeroPoint);
  if (steps < static_cast<float>(Limits::lowest())) return Limits::lowest();
  if (steps > static_cast<float>(Limits::max())) return Limits::max();
  return static_cast<edgeft::InputValue>(steps);
}

tflite::MicroInterpreter* Interpreter() {
  static tflite::MicroMutableOpResolver<edgeft::kOperators> resolver;
  static tflite::MicroInterpreter* interpreter = nullptr;
  if (interpreter == nullptr) {
    edgeft::AddOperators(resolver);
    static tflite::MicroInterpreter made(tflite::GetModel(edgeft::kModel), resolver, tensor_arena,
                                         edgeft::kTensorArenaBytes);
    if (made.AllocateTensors() != kTfLiteOk) return nullptr;  // the arena is too small, or an operator is missing
    interpreter = &made;
  }
  return interpreter;
}

}  // namespace

// Returns the index of the class (into edgeft::kLabels) with the highest score, or -1 if the model does not run.
// `values` are edgeft::kInputValues preprocessed numbers in the order of the file's input.
int Classify(const float* values) {
  tflite::MicroInterpreter* interpreter = Interpreter();
  if (interpreter == nullptr) return -1;
  auto* input = static_cast<edgeft::InputValue*>(interpreter->input(0)->data.data);
  for (std::size_t i = 0; i < edgeft::kInputValues; ++i) input[i] = Quantize(values[i]);
  if (interpreter->Invoke() != kTfLiteOk) return -1;
  const auto* output = static_cast<const edgeft::OutputValue*>(interpreter->output(0)->data.data);
  std::size_t best = 0;
  for (std::size_t i = 1; i < edgeft::kOutputValues; ++i) {
    if (output[i] > output[best]) best = i;
  }
  return static_cast<int>(best);
}
