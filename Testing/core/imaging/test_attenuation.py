"""HU to attenuation against the definition of the HU and the tables of NIST."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore.errors import VolumeError
from DiffDRRCore.imaging.attenuation import AttenuationMap, bone_attenuation, water_attenuation

# Hubbell and Seltzer, NISTIR 5632 (physics.nist.gov/PhysRefData/XrayMassCoef): mu/rho in cm^2/g of liquid water and
# ICRU-44 cortical bone, with coherent scattering. 70 keV is not in that table: log-log interpolation over 60 and 80
# keV is an upper bound there, because mu/rho is convex.
NIST_WATER = {30: 0.3756, 40: 0.2683, 50: 0.2269, 60: 0.2059, 80: 0.1837, 100: 0.1707, 150: 0.1505}
NIST_BONE = {30: 1.331, 40: 0.6655, 50: 0.4242, 60: 0.3148, 80: 0.2229, 100: 0.1855, 150: 0.1480}
MAPS = st.builds(
    AttenuationMap,
    energy_kev=st.floats(30, 150),
    bone_contrast=st.floats(0.2, 5),
    air_cut=st.one_of(st.just(-1000.0), st.floats(-1000, 600)),
)


@pytest.mark.parametrize("energy", NIST_WATER)
def test_coefficients_are_those_of_nist(energy):
    assert water_attenuation(energy) == pytest.approx(NIST_WATER[energy] / 10, rel=1e-6)
    assert bone_attenuation(energy) == pytest.approx(NIST_BONE[energy] * 1.92 / 10, rel=1e-3)


def test_coefficients_at_70_kev_lie_below_the_chord_of_the_nist_table():
    assert 0.1837 < water_attenuation(70) * 10 < (0.2059 * 0.1837) ** 0.5
    assert 0.2229 < bone_attenuation(70) * 10 / 1.92 < (0.3148 * 0.2229) ** 0.5 * 1.001


def test_the_default_is_the_definition_of_the_hu():
    hu = torch.tensor([-1000.0, -500, 0, 40, 1000, 3000, 30000], dtype=torch.float64)
    expected = 0.01929 * (1 + hu / 1000)
    torch.testing.assert_close(AttenuationMap()(hu), expected, rtol=1e-12, atol=0)


def test_bone_gets_the_attenuation_of_bone_at_every_energy():
    bone_hu = 1000 * (bone_attenuation(70) / water_attenuation(70) - 1)
    assert bone_hu == pytest.approx(1558, abs=1)
    for energy in (40, 60, 100, 140):
        mu = AttenuationMap(energy_kev=energy)(torch.tensor([0.0, bone_hu], dtype=torch.float64))
        assert mu.tolist() == pytest.approx([water_attenuation(energy), bone_attenuation(energy)])


def test_bone_contrast_scales_the_part_above_water_only():
    hu = torch.tensor([-300.0, 0, 700], dtype=torch.float64)
    plain, strong = AttenuationMap()(hu), AttenuationMap(bone_contrast=2.5)(hu)
    assert strong[:2].tolist() == plain[:2].tolist()
    assert float((strong[2] - strong[1]) / (plain[2] - plain[1])) == pytest.approx(2.5)


def test_metal_is_not_clamped_and_padding_is_air():
    mu = AttenuationMap()(torch.tensor([-1000.0, -1024, -3024, 20000]))
    assert mu[:3].tolist() == [0, 0, 0]
    assert float(mu[3]) == pytest.approx(0.01929 * 21, rel=1e-5)


def test_air_cut_is_a_ramp_of_100_hu():
    cut = AttenuationMap(air_cut=-700)
    line = AttenuationMap()
    hu = torch.tensor([-800.0, -700, -650, -600, -599, 500], dtype=torch.float64)
    end = 0.01929 * 0.4
    assert cut(hu).tolist()[:4] == pytest.approx([0, 0, end / 2, end])
    assert cut(hu).tolist()[4:] == line(hu).tolist()[4:]


@given(MAPS, st.floats(-1500, 4000), st.floats(0, 50))
@settings(max_examples=50, deadline=None)
def test_monotone_continuous_and_not_negative(attenuation, hu, step):
    values = attenuation(torch.tensor([hu, hu + step], dtype=torch.float64))
    steepest = max(attenuation.bone_slope, attenuation.mu_water / 1000, attenuation._ramp_slope)
    assert 0 <= values[0] <= values[1] <= values[0] + steepest * step + 1e-12


@given(MAPS, st.floats(0, 5000))
@settings(max_examples=50, deadline=None)
def test_inverse_gives_the_hu_back(attenuation, above):
    hu = torch.tensor(attenuation.air_cut + above, dtype=torch.float64)
    assert float(attenuation.inverse(attenuation(hu))) == pytest.approx(float(hu), abs=1e-8)


@pytest.mark.parametrize("attenuation", [AttenuationMap(), AttenuationMap(50, 2.0, -300)])
def test_gradient_is_the_slope(attenuation):
    hu = torch.tensor([-950.0, -350, -250, -20, 30, 2500], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attenuation, hu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(dtype):
    assert AttenuationMap()(torch.zeros(2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    "wrong",
    [{"energy_kev": 20}, {"energy_kev": 70000}, {"energy_kev": float("nan")}, {"bone_contrast": 0}, {"air_cut": -1200}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(VolumeError):
        AttenuationMap(**wrong)
