"""Compiles the inner loops of views once, where several processes would each begin with it.

python -m tests.compile_kernels
"""

import numpy as np

from pretrain.data.images.pixels import open_image
from pretrain.data.images.planes import as_planes
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import recipe_views
from tests.pretrain.shards import photo


def main() -> None:
    """Makes views of a JPEG and of an image that is stored decoded, with colours changed on the host."""
    jpeg = photo(0, side=300)
    images = [jpeg, as_planes(open_image(jpeg).decode(1)[0])]
    rows = np.arange(len(images))
    for recipe in ("simclr", "dino"):
        filling = RandomViews(recipe_views(recipe, 64, {}), seed=0, colours_on_host=True).begin(
            rows * 0, rows
        )
        for index, image in enumerate(images):
            filling.fill(index, image)


if __name__ == "__main__":
    main()
