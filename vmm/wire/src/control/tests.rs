//! Tests of the control formats.
