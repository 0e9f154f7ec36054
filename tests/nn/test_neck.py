import pytest
import torch
from tests.miniature import lively
from torch.utils.flop_counter import FlopCounterMode

from diorama.nn import neck as module
from diorama.nn.neck import Neck

DIM, HEADS, LATENTS, SIZE = 12, 3, 4, 5


def neck(attention, layers=3, seed=0):
    return lively(Neck(DIM, HEADS, layers, attention), seed)


def drawn(views=4, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, *shape, DIM, generator=generator) for shape in ((LATENTS,), (views, SIZE)))


def reads(attention, query, key):
    """Whether one token reads another; a token is (None, place) among the latents or (view, place)."""
    return query[0] is None or query[0] == key[0] or attention == "full" or (attention == "hub" and key[0] is None)


def by_hand(neck, latents, views):
    """Every token of every scene by itself, reading one by one those that it may."""
    outputs = []
    for scene in range(len(latents)):
        places = [(None, place) for place in range(latents.shape[1])]
        places += [(view, place) for view in range(views.shape[1]) for place in range(SIZE)]
        x = {p: (latents[scene] if p[0] is None else views[scene, p[0]])[p[1]] for p in places}
        for block in neck:
            after = {}
            for query in places:
                known = [key for key in places if reads(neck.attention, query, key)]
                keys = torch.stack([block.attention_norm(x[key]) for key in known])
                after[query] = x[query] + _attended(block.attention, block.attention_norm(x[query]), keys)
                after[query] = after[query] + block.mlp(block.mlp_norm(after[query]))
            x = after
        outputs.append(torch.stack([x[None, place] for place in range(latents.shape[1])]))
    return torch.stack(outputs)


def _attended(attention, token, known):
    width, outputs = DIM // HEADS, []
    queries, keys, values = (rows.chunk(3, -1)[n] for n, rows in enumerate(map(attention.qkv, (token, known, known))))
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        logits = attention.k_norm(keys[:, part]) @ attention.q_norm(queries[part]) / width**0.5
        outputs.append(logits.softmax(0) @ values[:, part])
    return attention.proj(torch.cat(outputs))


@pytest.mark.parametrize("attention", module.ATTENTIONS)
@torch.no_grad()
def test_the_neck_is_the_loop_over_tokens_and_what_each_may_read(attention):
    made, (latents, views) = neck(attention), drawn()
    torch.testing.assert_close(made(latents, views), by_hand(made, latents, views), atol=1e-5, rtol=1e-5)


def test_the_kinds_are_different_functions_of_the_same_weights():
    latents, views = drawn()
    found = [neck(attention)(latents, views) for attention in module.ATTENTIONS]
    assert neck("full").state_dict().keys() == neck("hub").state_dict().keys() == neck("one_way").state_dict().keys()
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (found[one] - found[other]).abs().max() > 1e-2


@pytest.mark.parametrize("attention", module.ATTENTIONS)
@torch.no_grad()
def test_the_order_of_the_views_does_not_matter(attention):
    made, (latents, views) = neck(attention), drawn()
    torch.testing.assert_close(made(latents, views[:, [2, 0, 3, 1]]), made(latents, views), atol=1e-5, rtol=1e-5)
    mixed = views.flatten(1, 2)[:, torch.randperm(20, generator=torch.Generator().manual_seed(1))].unflatten(1, (4, 5))
    other = made(latents, mixed)
    assert torch.allclose(other, made(latents, views), atol=1e-5) == (attention == "full")  # whose view is no matter


@pytest.mark.parametrize("attention", ["hub", "one_way"])
@torch.no_grad()
def test_going_through_few_views_at_once_changes_nothing(attention, monkeypatch):
    made, (latents, views), shapes = neck(attention), drawn(7), []
    whole = made(latents, views)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 2 * 2 * SIZE + 1)
    hook = made[0].register_forward_hook(lambda block, given, made: shapes.append(given[0].shape[:2]))
    torch.testing.assert_close(made(latents, views), whole, atol=1e-6, rtol=1e-5)
    assert shapes == [
        (4, SIZE),
        (4, SIZE),
        (4, SIZE),
        (2, SIZE),
        (2, LATENTS),
    ]  # of two scenes two views, then the rest
    hook.remove()
    with torch.enable_grad():
        made[0].register_forward_hook(lambda block, given, made: shapes.append(given[0].shape[:2]))
        made(latents, views)
    assert shapes[5:] == [(14, SIZE), (2, LATENTS)]


@pytest.mark.parametrize("cuts", [(7,), (1, 6), (3, 1, 2, 1)])
@torch.no_grad()
def test_one_way_reads_further_views_exactly(cuts):
    made, (latents, views), before = neck("one_way"), drawn(7), None
    for part in views.split(list(cuts), 1):
        found, before = made.read(latents, part, before, keep=True)
    torch.testing.assert_close(found, made(latents, views), atol=1e-6, rtol=1e-5)
    assert [known.keys.shape for known in before] == [(2, HEADS, 7 * SIZE, DIM // HEADS)] * 3


@torch.no_grad()
def test_views_may_come_in_any_order_and_size():
    made, (latents, views) = neck("one_way"), drawn(3)
    wide = torch.randn(2, 2, 2 * SIZE, DIM, generator=torch.Generator().manual_seed(5))
    found = []
    for first, second in ((views, wide), (wide, views)):
        found.append(made.read(latents, second, made.read(latents, first, keep=True)[1])[0])
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_hub_reads_further_views_as_far_as_earlier_ones_need_not_know():
    """Exact at first; then as the mask in which earlier views read latents that have not seen the further ones."""
    made, (latents, views) = neck("hub"), drawn(4)
    first, before = made.read(latents, views[:, :3], keep=True)
    torch.testing.assert_close(first, made(latents, views[:, :3]), atol=1e-6, rtol=1e-5)
    found, _ = made.read(latents, views[:, 3:], before)
    old, old_latents, new, x = views[:, :3], latents, views[:, 3:], latents
    for block in made:
        known = [block.keys_values(tokens.flatten(1, 2)) for tokens in (old, new)]
        both = type(known[0])(*(torch.cat(pair, 2) for pair in zip(*known, strict=True)))
        hubs = block.keys_values(old_latents), block.keys_values(x)
        after = [
            block(tokens.flatten(0, 1), hub.repeated(tokens.shape[1]))[0].unflatten(0, tokens.shape[:2])
            for tokens, hub in zip((old, new), hubs, strict=True)
        ]
        old_latents, x = block(old_latents, known[0])[0], block(x, both)[0]
        old, new = after
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    assert 1e-3 < (found - made(latents, views)).abs().mean() < (first - made(latents, views)).abs().mean()


def test_full_attention_cannot_read_further_views():
    latents, views = drawn()
    with pytest.raises(ValueError, match=r"^neck_attention 'full', in .* ones: accepted here are 'hub' and 'one_way'$"):
        neck("full").read(latents, views)
    with pytest.raises(ValueError, match=r"^neck_attention 'all': accepted are 'full', 'hub', 'one_way'$"):
        neck("all")


def flops(attention, views, read=None):
    with torch.device("meta"):
        made, latents = Neck(768, 16, 12, attention), torch.empty(1, 256, 768)
        tokens = [torch.empty(1, count, 324, 768) for count in (views, read) if count]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if read is None:
            made(latents, tokens[0])
        else:
            before = made.read(latents, tokens[0], keep=True)[1]
            first = counter.get_total_flops()
            made.read(latents, tokens[1], before)
            return counter.get_total_flops() - first
    return counter.get_total_flops()


@pytest.mark.parametrize("attention", ["hub", "one_way"])
def test_every_further_view_costs_the_same(attention):
    cost = {views: flops(attention, views) for views in (16, 32, 64, 128)}
    m, n, d, layers = 256, 324, 768, 12
    attended = 4 * d * (n * m + (n * (n + m * (attention == "hub")))) * (layers - 1) + 4 * d * n * m
    view = n * (24 * d * d * (layers - 1) + 4 * d * d) + attended
    assert cost[32] - cost[16] == 16 * view and cost[64] - cost[32] == 32 * view and cost[128] - cost[64] == 64 * view


def test_full_attention_costs_the_square_of_the_views():
    cost = [flops("full", views) for views in (16, 32, 48)]
    assert cost[2] - 2 * cost[1] + cost[0] == 2 * (16 * 324) ** 2 * 4 * 768 * 11  # the second difference
    assert flops("full", 128) / flops("hub", 128) > 5


def test_reading_further_views_costs_little_of_what_all_would():
    again, more = flops("one_way", 68), flops("one_way", 64, 4)
    m, n, d = 256, 324, 768
    of_latents = 12 * (m * 24 * d * d + 4 * d * m * (m + 68 * n))
    assert more < flops("one_way", 4) + of_latents and more < again / 4
