"""The commands: a trainer for timm's models, what is read and made of finished runs, and the report.

They may import the method; the method never imports them.
"""
