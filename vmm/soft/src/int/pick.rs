//! Macros that turn an operand width or an address kind known at decoding into a type parameter.

/// `sized!(bytes, T => expr)`: `expr` with `T` the unsigned integer of that size.
macro_rules! sized {
    ($bytes:expr, $t:ident => $e:expr) => {
        match $bytes {
            1 => {
                type $t = u8;
                $e
            }
            2 => {
                type $t = u16;
                $e
            }
            4 => {
                type $t = u32;
                $e
            }
            _ => {
                type $t = u64;
                $e
            }
        }
    };
}

/// The same without bytes: 2, 4 or 8.
macro_rules! sized_word {
    ($bytes:expr, $t:ident => $e:expr) => {
        match $bytes {
            2 => {
                type $t = u16;
                $e
            }
            4 => {
                type $t = u32;
                $e
            }
            _ => {
                type $t = u64;
                $e
            }
        }
    };
}

/// `addressed!(d, A => expr)`: `expr` with `A` the kind of address of the memory operand.
macro_rules! addressed {
    ($d:expr, $a:ident => $e:expr) => {
        match $d.ea {
            $crate::decode::Ea::Flat => {
                type $a = $crate::ea::Flat;
                $e
            }
            $crate::decode::Ea::Rip => {
                type $a = $crate::ea::Rip;
                $e
            }
            $crate::decode::Ea::General => {
                type $a = $crate::ea::General;
                $e
            }
        }
    };
}

pub(crate) use {addressed, sized, sized_word};
