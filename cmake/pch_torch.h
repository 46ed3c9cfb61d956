// The one precompiled LibTorch header: it costs ten seconds a file without it.
#pragma once
#include "model/libtorch.h"
