"""The mutations are run by hand, now and then; that they still fit the code shows at once."""

import mutations
import pytest


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_still_changes_something(mutation: mutations.Mutation) -> None:
    assert mutations.applies(mutation)
