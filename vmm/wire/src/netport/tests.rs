//! Tests of the netport formats.
