//! Tests of the register formats.
