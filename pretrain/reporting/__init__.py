"""The page that shows a run: charts, verdict, images, layout.
Knows run folders and encoders, no method and no task.
"""
