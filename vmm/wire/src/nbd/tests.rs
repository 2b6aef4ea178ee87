//! Tests of the nbd formats.
