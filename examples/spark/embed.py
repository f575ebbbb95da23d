"""Embeds a table of proteins with Spark: an engine in each Python worker, rows packed by tokens.

spark-submit examples/spark/embed.py ARTIFACT proteins.parquet embeddings.parquet
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType

import esm2_engines as esm2

ROWS_AT_ONCE = 4096


def make_predict(artifact: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Called once in each worker; Spark keeps what it returns."""
    model = esm2.load(artifact, threads=threads)

    def predict(sequences: np.ndarray) -> np.ndarray:
        """Of proteins that cannot be run the vector is NaN: one of them shall not end the job."""
        vectors = np.full((len(sequences), model.engine.spec.embed_dim), np.nan, np.float32)
        for embedding in model.stream(sequences.tolist(), on_rejected=lambda rejection: None):
            vectors[embedding.row] = embedding.values
        return vectors

    return predict


def main() -> None:
    """Reads the command line and runs the job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("proteins", help="Parquet with a column of sequences")
    parser.add_argument("output")
    parser.add_argument("--column", default="sequence")
    parser.add_argument("--threads", type=int, default=1, help="of each worker: spark.task.cpus")
    options = parser.parse_args()
    spark = SparkSession.builder.appName("esm2-engines").getOrCreate()
    embed = predict_batch_udf(
        partial(make_predict, options.artifact, options.threads),
        return_type=ArrayType(FloatType()),
        batch_size=ROWS_AT_ONCE,
    )
    table = spark.read.parquet(options.proteins)
    table.withColumn("embedding", embed(options.column)).write.parquet(options.output)


if __name__ == "__main__":
    main()
