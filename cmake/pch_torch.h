// The one precompiled LibTorch header: torch/torch.h costs 16 seconds a file without it.
#pragma once
#include <torch/torch.h>
