// What this tree uses of LibTorch: tensors, their operators, autograd. torch/torch.h, with modules, optimizers and data
// loaders that nothing here needs, costs every file more than twice as much.
#pragma once
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>
