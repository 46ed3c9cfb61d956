// The precompiled header of the tests without LibTorch.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cmake/pch_grpc.h"
