//! `ft-diskd`: the shared disk (an NBD server over raw image files) and the view register.
//!
//! The two live in one process because of one rule (the design's rule 6): before a winning claim
//! is answered, every disk request of an older view has finished or is refused for ever. The
//! [`access`] table is where the two meet: the register moves it, every disk request asks it.
//!
//! | module | topic |
//! |---|---|
//! | [`config`] | what is served, and where |
//! | [`image`] | one image file: bounds, holes, flushing, consistent copies |
//! | [`access`] | who may touch which disk now; fencing |
//! | [`store`] | the register's state on stable storage |
//! | [`register`] | the view register's service |
//! | [`nbd`] | the NBD server's side of a connection |
//! | [`server`] | listeners, threads, start and stop |

pub mod access;
pub mod config;
pub mod image;
pub mod nbd;
pub mod register;
pub mod server;
pub mod store;

pub use config::{Config, DiskConfig};
pub use server::{Handle, ServeError, serve};
