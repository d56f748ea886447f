"""Which pictures an answer shows, as URIs. Knows no face."""

from serve.errors import NotFound
from serve.media.outputs import OutputStore
from serve.predictions.record import Prediction


async def shown_outputs(prediction: Prediction, outputs: OutputStore) -> list[str] | None:
    """The URIs of a prediction that succeeded; None for any other, and when its pictures are kept no longer."""
    if prediction.status != "succeeded":
        return None
    try:
        return [await outputs.uri(prediction.id, output.name) for output in prediction.outputs]
    except NotFound:
        return None
