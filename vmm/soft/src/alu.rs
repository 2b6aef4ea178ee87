//! Integer arithmetic with the host's own flags.
#![allow(unsafe_code)]
