"""LitServe around transformers, with its own batching.

python litserve_transformers.py CHECKPOINT PORT
"""

import sys

import litserve
import torch
from transformers import AutoTokenizer, EsmModel


class Embed(litserve.LitAPI):
    """The mean over residues of the last layer."""

    def setup(self, device: str) -> None:
        """Loads."""
        self.tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        self.model = EsmModel.from_pretrained(sys.argv[1], add_pooling_layer=False).eval()

    def decode_request(self, request: dict) -> str:
        """One sequence a request."""
        return request["inputs"][0]

    def predict(self, sequences: list[str]) -> list[list[float]]:
        """Padded to the longest."""
        batch = self.tokenizer(sequences, return_tensors="pt", padding=True)
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state
        lengths = batch["attention_mask"].sum(1).tolist()
        return [hidden[i, 1 : n - 1].mean(0).tolist() for i, n in enumerate(lengths)]

    def encode_response(self, vector: list[float]) -> list[list[float]]:
        """As ours."""
        return [vector]


if __name__ == "__main__":
    server = litserve.LitServer(
        Embed(max_batch_size=32, batch_timeout=0.01, api_path="/embed"),
        accelerator="cpu",
        timeout=600,
        healthcheck_path="/health/ready",
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning"
    )
