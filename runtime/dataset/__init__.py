"""A folder of Parquet files that outlives its run: written part by part, gone on with after a kill.

``docs/datasets.md`` describes it. The data's path: ``folder.opened`` says where to go on,
``cutting`` cuts the stream where a run can begin again, ``folder.Dataset.write`` publishes each
part and then says so in the journal.
"""
