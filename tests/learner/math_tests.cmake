rlhf_cc_test(NAME learner_math_test TORCH SRCS math_golden_test.cc DEPS rlhf::learner_math)
