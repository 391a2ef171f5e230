"""Outputs are read by attribute, by key and as a tuple; what was not computed is not there."""

import jax
import jax.numpy as jnp
import pytest

from flax_mnv2.models import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention


def test_three_ways_of_reading_agree():
    output = ImageClassifierOutputWithNoAttention(loss=jnp.float32(2.0), logits=jnp.ones((1, 3)))
    assert output["loss"] is output.loss is output[0] is output.to_tuple()[0]
    loss, logits = output
    assert (loss, logits) == (output.loss, output.logits)
    assert dict(output).keys() == {"loss", "logits"}
    assert output[:1] == (output.loss,)
    assert output[-1] is output.logits
    assert "loss" in output
    assert output.get("loss") is output.loss


def test_what_is_none_is_left_out():
    output = ImageClassifierOutputWithNoAttention(logits=jnp.ones((1, 3)))
    assert output[0] is output.logits
    assert len(output) == 1
    assert "loss" not in output
    assert output.get("loss") is None
    assert output.get("loss", 3) == 3
    assert [name for name, _ in output.items()] == ["logits"]
    with pytest.raises(KeyError, match="holds logits"):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]


def test_outputs_pass_through_jit():
    output = jax.jit(lambda x: BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=x, hidden_states=(x, x)))(
        jnp.ones(2)
    )
    assert output.keys() == ("last_hidden_state", "hidden_states")
    assert len(output["hidden_states"]) == 2
