//! CPUID: what the guest is shown.
