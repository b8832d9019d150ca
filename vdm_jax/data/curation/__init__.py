"""From a folder of films to a training set (Stable Video Diffusion, section 3).

One pass over a film finds its cuts and measures its clips (`scan`). What was measured is kept
beside the output, one file a film (`records`), by a pool of processes (`engine`) or by Apache Beam
(`beam`). Filters are a second pass over the stored scores (`filters`), and so are the table of all
clips (`table`), the shards that training reads (`output`) and the report (`report`).

Needs the extra `curation` (`pip install -e ".[curation]"`).
"""
