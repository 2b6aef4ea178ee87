//! When x87, MMX and SSE instructions are enabled and when pending exceptions are reported (SDM
//! vol. 3, tables 2-2, 12-1 and 13-1). What they compute is the differential test's affair.

use crate::rig::{Rig, at};
use crate::{Cases, Maker, same};

pub const CASES: Cases = &[
    ("floating: enabling", enabling),
    ("floating: pending x87 exceptions", pending),
    ("floating: SSE exceptions", sse_exceptions),
];

const MP: u64 = 1 << 1;
const EM: u64 = 1 << 2;
const TS: u64 = 1 << 3;
const NE: u64 = 1 << 5;
const OSFXSR: u64 = 1 << 9;
const OSXMMEXCPT: u64 = 1 << 10;

const ADDPS: &[u8] = &[0x0f, 0x58, 0xc1];
const PADDB: &[u8] = &[0x0f, 0xfc, 0xc1];
const FLD1: &[u8] = &[0xd9, 0xe8];
const FWAIT: &[u8] = &[0x9b];
const FNSTSW: &[u8] = &[0xdf, 0xe0];
const FNCLEX: &[u8] = &[0xdb, 0xe2];
const EMMS: &[u8] = &[0x0f, 0x77];
const CVTPI2PS: &[u8] = &[0x0f, 0x2a, 0xc1];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x03];
const LDMXCSR: &[u8] = &[0x0f, 0xae, 0x53, 0x18];
const MOVNTI: &[u8] = &[0x0f, 0xc3, 0x03];
const SFENCE: &[u8] = &[0x0f, 0xae, 0xf8];

const NM: Option<u8> = Some(7);
const UD: Option<u8> = Some(6);
const MF: Option<u8> = Some(16);

/// Runs one instruction with RBX at `DATA`, where there is an FXSAVE image, and then HLT; the
/// exception, if there is one.
fn one(
    make: Maker,
    cr0: u64,
    cr4: u64,
    image: &[u8],
    code: &[u8],
) -> Result<(Option<u8>, Vec<u8>), String> {
    let mut body = code.to_vec();
    body.push(0xf4);
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA, image);
    rig.change(|s| {
        s.cr0 = s.cr0 & !(MP | EM | TS | NE) | cr0;
        s.cr4 = s.cr4 & !(OSFXSR | OSXMMEXCPT) | cr4;
        s.gpr[3] = at::DATA;
        s.fxsave.copy_from_slice(image);
    })?;
    rig.run_to(None)?;
    let state = rig.engine.state();
    let handler = state.rip.wrapping_sub(at::HANDLERS);
    let vector = (handler < 8 * 256).then_some((handler / 8) as u8);
    Ok((vector, state.fxsave))
}

fn image(fcw: u16, fsw: u16, mxcsr: u32) -> Vec<u8> {
    let mut image = vec![0; 512];
    image[..2].copy_from_slice(&fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fsw.to_le_bytes());
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    image
}

fn enabling(make: Maker) -> Result<(), String> {
    type Row = (&'static str, &'static [u8], [Option<u8>; 5]);
    let settings = [
        ("all on", NE, OSFXSR),
        ("EM", EM | NE, OSFXSR),
        ("TS, MP", TS | MP | NE, OSFXSR),
        ("TS", TS | NE, OSFXSR),
        ("no OSFXSR", NE, 0),
    ];
    let rows: [Row; 11] = [
        ("ADDPS", ADDPS, [None, UD, NM, NM, UD]),
        ("PADDB", PADDB, [None, UD, NM, NM, None]),
        ("FLD1", FLD1, [None, NM, NM, NM, None]),
        ("FWAIT", FWAIT, [None, None, NM, None, None]),
        ("FNSTSW", FNSTSW, [None, NM, NM, NM, None]),
        ("EMMS", EMMS, [None, UD, NM, NM, None]),
        ("CVTPI2PS", CVTPI2PS, [None, UD, NM, NM, UD]),
        ("FXSAVE", FXSAVE, [None, NM, NM, NM, None]),
        ("LDMXCSR", LDMXCSR, [None, UD, NM, NM, UD]),
        ("MOVNTI", MOVNTI, [None, None, None, None, None]),
        ("SFENCE", SFENCE, [None, None, None, None, None]),
    ];
    let image = image(0x37f, 0, 0x1f80);
    for (name, code, wanted) in rows {
        for ((setting, cr0, cr4), want) in settings.into_iter().zip(wanted) {
            let (got, _) = one(make, cr0, cr4, &image, code)?;
            same!(got, want, "{name} with {setting}");
        }
    }
    Ok(())
}

fn pending(make: Maker) -> Result<(), String> {
    // Invalid operation, not masked.
    let image = image(0x37e, 0x8081, 0x1f80);
    for (name, code, want) in [
        ("FLD1", FLD1, MF),
        ("FWAIT", FWAIT, MF),
        ("PADDB", PADDB, MF),
        ("EMMS", EMMS, MF),
        ("CVTPI2PS", CVTPI2PS, MF),
        ("FNSTSW", FNSTSW, None),
        ("FNCLEX", FNCLEX, None),
        ("FXSAVE", FXSAVE, None),
        ("ADDPS", ADDPS, None),
    ] {
        let (got, after) = one(make, NE, OSFXSR, &image, code)?;
        same!(got, want, "{name}");
        if want.is_some() {
            same!(after, image, "{name}: state");
        }
    }
    let (got, after) = one(make, NE, OSFXSR, &image, FNCLEX)?;
    same!(got, None, "FNCLEX");
    same!(after[2..4], [0u8, 0], "status after FNCLEX");
    // #NM goes before #MF.
    let (got, _) = one(make, NE | TS, OSFXSR, &image, FLD1)?;
    same!(got, NM, "FLD1 with TS");
    Ok(())
}

fn sse_exceptions(make: Maker) -> Result<(), String> {
    const DIVPS: &[u8] = &[0x0f, 0x5e, 0xc1];
    let with = |mxcsr| {
        let mut image = image(0x37f, 0, mxcsr);
        image[160..164].copy_from_slice(&1.0f32.to_le_bytes());
        image
    };
    // 1/0 and three times 0/0, with the latter masked.
    let image = with(0x1f80 & !(1 << 9));
    let (got, after) = one(make, NE, OSFXSR | OSXMMEXCPT, &image, DIVPS)?;
    same!(got, Some(19), "division by zero");
    same!(after[24], 0x85u8, "flags");
    same!(after[160..176], image[160..176], "destination");
    let (got, _) = one(make, NE, OSFXSR, &image, DIVPS)?;
    same!(got, UD, "division by zero without OSXMMEXCPT");
    let (got, after) = one(make, NE, OSFXSR, &with(0x1f80), DIVPS)?;
    same!(got, None, "masked");
    same!(after[24], 0x85u8, "flags when masked");
    same!(
        after[160..164],
        f32::INFINITY.to_le_bytes(),
        "result when masked"
    );
    Ok(())
}
